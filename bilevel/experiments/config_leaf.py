"""One value of a configuration: its type, its bounds, and the words for both."""

import math
import numbers
import types
import typing
from typing import Any, Literal, NamedTuple

# What a value must be an instance of, to become one of the declared type.
_SCALARS: dict[Any, type] = {
    bool: bool,
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
}


class ConfigError(ValueError):
    """A configuration, its file or a flag is wrong; the message is for its author."""


class Leaf(NamedTuple):
    """One value of a configuration: its type, help text and inclusive bounds."""

    annotation: Any
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None


def check(leaf: Leaf, value: Any) -> Any:
    """Returns the value in the type of its field.

    Raises:
      ConfigError: the value does not fit the type or the bounds.
    """
    entry = inner_type(leaf.annotation)
    if entry is None:
        return _check_one(leaf, value)
    if typing.get_origin(leaf.annotation) is not tuple:
        if entry is str and isinstance(value, str) and value.lower() == "none":
            raise ConfigError("'none' is no text here: a flag says None so")
        return None if value is None else check(leaf._replace(annotation=entry), value)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"expected {type_words(leaf.annotation)}, got {shown(value)}")
    checked = tuple(check(leaf._replace(annotation=entry), one) for one in value)
    if entry is str and any(one == "" or "," in one for one in checked):
        raise ConfigError(
            f"a text in a tuple has no commas and is not empty: {checked}"
        )
    return checked


def inner_type(annotation: Any) -> Any:
    """Returns X of `X | None` and of `tuple[X, ...]`, and None for every other type."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        others = [arg for arg in args if arg is not types.NoneType]
        return others[0] if len(others) == 1 < len(args) else None
    return args[0] if origin is tuple and args[1:] == (Ellipsis,) else None


def type_words(annotation: Any) -> str:
    """Says in words what a type takes: 'float', 'int or none', "one of 'a', 'b'"."""
    if annotation in _SCALARS:
        return annotation.__name__
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(annotation)))}"
    entry = type_words(inner_type(annotation))
    is_tuple = typing.get_origin(annotation) is tuple
    return f"tuple of {entry}" if is_tuple else f"{entry} or none"


def shown(value: Any) -> str:
    """Returns a value as an error message shows it: short, with its type."""
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if value is None else f"{text} ({type(value).__name__})"


def is_supported(annotation: Any, in_tuple: bool = False) -> bool:
    """Says whether a field, or an entry of a tuple, can have this type.

    A tuple in a tuple cannot be a flag, which has one kind of comma: `1,2,3` would be
    ((1, 2), (3,)) as well as (1, 2, 3).
    """
    entry = inner_type(annotation)
    if entry is None:
        is_choice = typing.get_origin(annotation) is Literal
        return annotation in _SCALARS or is_choice
    is_tuple = typing.get_origin(annotation) is tuple
    return not (in_tuple and is_tuple) and is_supported(entry, in_tuple or is_tuple)


def _check_one(leaf: Leaf, value: Any) -> Any:
    """Checks a value whose type is a scalar or a `Literal`."""
    expected = f"expected {type_words(leaf.annotation)}, got {shown(value)}"
    if typing.get_origin(leaf.annotation) is Literal:
        for choice in typing.get_args(leaf.annotation):
            if type(choice) is type(value) and choice == value:
                return choice
        raise ConfigError(expected)
    fits = isinstance(value, _SCALARS[leaf.annotation])
    if not fits or (isinstance(value, bool) and leaf.annotation is not bool):
        raise ConfigError(expected)
    # NaN is not equal to itself, infinity is no JSON; for 'no limit' there is None.
    if leaf.annotation is float and not math.isfinite(value):
        raise ConfigError(f"expected a finite float, got {value}")
    if leaf.minimum is not None and value < leaf.minimum:
        raise ConfigError(f"must be at least {leaf.minimum}, got {value}")
    if leaf.maximum is not None and value > leaf.maximum:
        raise ConfigError(f"must be at most {leaf.maximum}, got {value}")
    return leaf.annotation(value)
