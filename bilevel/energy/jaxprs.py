"""What the files that look at a function's operations share."""

from typing import Any


def inner(equation: Any) -> Any:
    """The jaxpr of a call, or None."""
    for key in ("jaxpr", "call_jaxpr"):
        value = equation.params.get(key)
        if value is not None:
            return getattr(value, "jaxpr", value)
    return None


def is_literal(var: Any) -> bool:
    """Whether an argument of an operation is a number; those are not hashable."""
    return hasattr(var, "val")
