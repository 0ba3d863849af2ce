"""Values that may be traced: checked where they are known."""

from typing import Any

import jax
import numpy as np


def known(value: Any) -> np.ndarray | None:
    """The value as an array of NumPy, or None where it is traced."""
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None
