"""Formats as plain values, for files: the call that makes them, without any code."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bilevel.known import known
from bilevel.number_formats.codebook import binary, codebook, ternary
from bilevel.number_formats.integer import affine, fixed_point, symmetric
from bilevel.number_formats.minifloat import minifloat, of_ml_dtypes
from bilevel.number_formats.number_format import NumberFormat
from bilevel.number_formats.posit import posit
from bilevel.number_formats.power_of_two import power_of_two
from bilevel.number_formats.scaled import scaled

# The only functions that a file may name.
_MAKERS: dict[str, Callable[..., NumberFormat]] = {
    one.__name__: one
    for one in (
        affine,
        binary,
        codebook,
        fixed_point,
        minifloat,
        of_ml_dtypes,
        posit,
        power_of_two,
        scaled,
        symmetric,
        ternary,
    )
}


def describe(number_format: NumberFormat) -> dict[str, Any] | None:
    """The format as a value for JSON; None for one that is not made by this package.

    Example:
        >>> from bilevel import number_formats
        >>> describe(number_formats.posit(8, 1))["args"]
        [8, 1]
    """
    recipe = number_format.recipe
    if recipe is None or _MAKERS.get(recipe.factory.__name__) is not recipe.factory:
        return None
    replaced = [
        name
        for name, now, then in zip(
            number_format._fields, number_format, recipe.fields, strict=True
        )
        if now is not then and name not in ("recipe", "name", "anchor")
    ]
    if replaced:
        return None
    try:
        args = [_plain(one) for one in recipe.args]
        kwargs = {name: _plain(one) for name, one in recipe.kwargs.items()}
    except TypeError:
        return None
    return {
        "made_by": recipe.factory.__name__,
        "args": args,
        "kwargs": kwargs,
        "name": number_format.name,
    }


def described(value: dict[str, Any]) -> NumberFormat:
    """The format of a description.

    Raises:
        ValueError: it names no maker of this package, or arguments that it refuses.

    Example:
        >>> from bilevel import number_formats
        >>> described(describe(number_formats.symmetric(4))).range
        (-7.0, 7.0)
    """
    maker = _MAKERS.get(value["made_by"])
    if maker is None:
        raise ValueError(
            f"there is no maker of number formats {value['made_by']!r}; there are "
            f"{', '.join(sorted(_MAKERS))}."
        )
    args = [_made(one) for one in value["args"]]
    kwargs = {name: _made(one) for name, one in value["kwargs"].items()}
    return maker(*args, **kwargs)._replace(name=value["name"])


def _plain(value: Any) -> Any:
    if isinstance(value, NumberFormat):
        found = describe(value)
        if found is None:
            raise TypeError(value.name)
        return {"format": found}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    given = known(value)
    if given is None or given.dtype.kind not in "iuf":
        raise TypeError(type(value))
    return np.asarray(given, np.float64 if given.dtype.kind == "f" else None).tolist()


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        return described(value["format"])
    return np.asarray(value) if isinstance(value, list) else value
