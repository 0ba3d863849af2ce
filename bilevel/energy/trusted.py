"""A mark for functions that are analytic although some of their operations are not."""

from collections.abc import Callable
from typing import Any

import jax

MARK = "analytic_as_a_whole"


def trusted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function as analytic whatever its operations are; returns it compiled.

    Args:
        function: say an affine map that takes real and imaginary parts by themselves.
    """
    compiled = lambda *args: function(*args)
    compiled.__name__ = MARK
    return jax.jit(compiled)
