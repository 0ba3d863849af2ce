"""Checks of numbers that a user passes, with errors that say what was expected."""

import operator
from typing import Any, cast

import jax
import numpy as np
from jax import core


def count(name: str, value: Any, least: int) -> int:
    """`value` as an int: NumPy integers pass, fractions, strings and bools do not.

    Raises:
        ValueError: it is no integer, or less than `least`.

    Example:
        >>> import numpy as np
        >>> count("max_steps", np.int64(3), 1)
        3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
    return number


def is_number(value: Any) -> bool:
    """Whether `value` is one real number: of Python, NumPy or JAX, traced or not."""
    if isinstance(value, bool | str):
        return False
    if isinstance(value, int | float):
        return True
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array)
    return is_array and value.ndim == 0 and value.dtype.kind in "iuf"


def positive(name: str, value: Any) -> float:
    """`value` as a float.

    Raises:
        ValueError: it is traced, no number, not finite, or not greater than 0.

    Example:
        >>> import numpy as np
        >>> positive("step_size", np.float32(0.5))
        0.5
    """
    if isinstance(value, core.Tracer):
        raise ValueError(
            f"{name} must be a plain number here, but it is traced by JAX (inside of "
            "jit, grad or vmap). Pass an optax transformation that holds it, "
            "optax.sgd(value), with hypergradients.unrolled(), or make it a part of "
            "the outer variable."
        )
    number = float(cast(Any, value)) if is_number(value) else None
    if number is None or not 0 < number < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")
    return number


def positive_if_known(name: str, value: Any) -> Any:
    """`value` as a float, or as it is where JAX traces it: a step size that is learned.

    Raises:
        ValueError: it is no number, or known and not finite or not greater than 0.

    Example:
        >>> positive_if_known("step_size", 1)
        1.0
    """
    if isinstance(value, core.Tracer) and is_number(value):
        return value
    return positive(name, value)
