"""Typed configurations: frozen dataclasses, checked once, with one canonical JSON.

A configuration file is a Python file that defines `get_config()`, which returns an
instance of a frozen dataclass. Its fields are bool, int, float, str, `Literal[...]`,
`X | None`, `tuple[X, ...]` or another such dataclass:

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Inner:
        learning_rate: float = config.field(0.1, help="inner step size", minimum=0.0)

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        inner: Inner = Inner()
        linear_solver: Literal["cg", "neumann"] = config.field("cg", help="adjoint")

    def get_config() -> Config:
        return Config()

Inside this file a configuration is a flat dictionary from dotted path to value
(`{"inner.learning_rate": 0.1, "linear_solver": "cg"}`): lists of unknown and missing
fields, replacement, differences and flags are then plain dictionary operations.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

from bilevel.experiments.config_leaf import (
    ConfigError,
    Leaf,
    check,
    is_supported,
    shown,
)

__all__ = [
    "ConfigError",
    "Leaf",
    "Values",
    "checked",
    "difference",
    "digest",
    "field",
    "flat",
    "from_dict",
    "leaves",
    "of",
    "replace",
    "to_dict",
    "to_json",
]

C = TypeVar("C")
T = TypeVar("T")


def field(
    default: T,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
) -> T:
    """Declares a field with the help text of its flag and inclusive bounds.

    Args:
      default: the value; it must lie within the bounds.
      help: one line, shown by `--help`.
      minimum: smallest allowed number (of every entry, for a tuple).
      maximum: largest allowed number.

    Returns:
      A dataclass field (typed as its default, as `dataclasses.field` is).

    Example:
      >>> @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
      ... class Inner:
      ...     learning_rate: float = field(0.1, help="step size", minimum=0.0)
      >>> Inner().learning_rate
      0.1
    """
    leaf = Leaf(None, help, minimum, maximum)
    return dataclasses.field(default=default, metadata={"leaf": leaf})


Values: TypeAlias = Any
"""What `of` returns: a frozen dataclass with fields that only the caller knows."""


def of(**values: bool | int | float | str) -> Values:
    """Makes a configuration of a few values, for a script without a file for it.

    Each value is the default of a field of its own type.

    Example:
      >>> of(seed=0, learning_rate=0.1).learning_rate
      0.1
    """
    fields = [
        (name, type(value), dataclasses.field(default=value))
        for name, value in values.items()
    ]
    made = dataclasses.make_dataclass(
        "Config", fields, frozen=True, kw_only=True, slots=True
    )
    return made()


def checked(config: C) -> C:
    """Returns the configuration with every value checked and of its declared type.

    An int given for a float becomes a float, a list given for a tuple a tuple, so that
    equal configurations have equal JSON and share one `jax.jit` trace.

    Raises:
      ConfigError: not an instance of a frozen dataclass, a type that is not supported,
        or a value that does not fit; the message names the field.
    """
    if isinstance(config, type) or not dataclasses.is_dataclass(config):
        raise ConfigError(f"expected an instance of a dataclass, got {shown(config)}")
    return typing.cast(C, _build(type(config), _values(config)))


def leaves(cls: type) -> dict[str, Leaf]:
    """Returns `{dotted path: Leaf}` of a configuration class, in order of definition.

    Raises:
      ConfigError: a class is not frozen, or a type is not supported.
    """
    found = {}
    for name, leaf in _fields(cls):
        if dataclasses.is_dataclass(leaf.annotation):
            inner = leaves(typing.cast(type, leaf.annotation))
            found |= {f"{name}.{path}": one for path, one in inner.items()}
        else:
            found[name] = leaf
    return found


def flat(config: Any) -> dict[str, Any]:
    """Returns `{dotted path: value}`, checked.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     rate: float = 3
      >>> flat(Config())
      {'rate': 3.0}
    """
    return _values(checked(config))


def to_dict(config: Any) -> dict[str, Any]:
    """Returns nested dictionaries of JSON values; `from_dict` is the inverse."""
    nested: dict[str, Any] = {}
    for path, value in flat(config).items():
        *groups, name = path.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = list(value) if isinstance(value, tuple) else value
    return nested


def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
    """Builds a configuration from nested dictionaries, as `to_dict` returns them.

    Args:
      cls: the configuration class.
      data: a value for every field, defaults included: a record that lacks a field
        is of another version of the class, and to fill it in would hide that.

    Returns:
      The configuration, checked.

    Raises:
      ConfigError: unknown or missing fields (all of them are listed), or a value that
        does not fit.
    """
    given, known = flat_dict(data), leaves(cls)
    unknown = sorted(given.keys() - known.keys())
    missing = sorted(known.keys() - given.keys())
    if unknown or missing:
        parts = [f"unknown: {', '.join(unknown)}"] if unknown else []
        parts += [f"missing: {', '.join(missing)}"] if missing else []
        raise ConfigError(
            f"the fields are not those of {cls.__name__}; {'; '.join(parts)}"
        )
    return _build(cls, given)


def to_json(config: Any) -> str:
    """Returns the canonical JSON: sorted keys, no spaces, normalised values."""
    return _json(to_dict(config))


def digest(config: Any) -> str:
    """Returns the sha256 of the canonical JSON, 64 hex digits."""
    return dict_digest(to_dict(config))


def dict_digest(nested: Mapping[str, Any]) -> str:
    """Returns the digest of a configuration that was stored as `to_dict` returns it."""
    return hashlib.sha256(_json(nested).encode()).hexdigest()


def difference(stored: Any, given: Any) -> list[str]:
    """Lists what differs, one line 'field: stored -> given' each.

    Args:
      stored: a configuration, or nested dictionaries as `to_dict` returns them (of an
        older version of the class, say).
      given: the same.

    Returns:
      The lines, sorted by field; a field that one side lacks is '(absent)' there.

    Example:
      >>> difference({"inner": {"steps": 3}}, {"inner": {"steps": 4}})
      ['inner.steps: 3 -> 4']
    """
    before, after = (
        {path: json.dumps(value) for path, value in flat_dict(side).items()}
        for side in (
            side if isinstance(side, Mapping) else to_dict(side)
            for side in (stored, given)
        )
    )
    return [
        f"{path}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def replace(config: C, changes: Mapping[str, Any]) -> C:
    """Returns the configuration with values replaced by dotted path, checked.

    Raises:
      ConfigError: an unknown path, or a value that does not fit.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     steps: int = 3
      >>> replace(Config(), {"steps": 5}).steps
      5
    """
    values = flat(config)
    unknown = [path for path in changes if path not in values]
    if unknown:
        raise ConfigError(
            f"unknown fields: {', '.join(unknown)}; there are {', '.join(values)}"
        )
    return _build(type(config), {**values, **changes})


def _json(nested: Mapping[str, Any]) -> str:
    return json.dumps(nested, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _fields(cls: type) -> Iterator[tuple[str, Leaf]]:
    """Yields name and `Leaf` of every field; the annotation may be a dataclass."""
    # A configuration is a static argument of jax.jit. Whether a dataclass is frozen has
    # no public reader, but one that is not has no hash.
    if cls.__hash__ is None:
        raise ConfigError(
            f"{cls.__name__} can be changed after it was made; declare it with"
            " @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)"
        )
    annotations = typing.get_type_hints(cls)
    for one in dataclasses.fields(typing.cast(Any, cls)):
        annotation = annotations[one.name]
        if not is_supported(annotation) and not dataclasses.is_dataclass(annotation):
            raise ConfigError(
                f"{cls.__name__}.{one.name} has type {annotation}; supported are bool,"
                " int, float, str, Literal[...], X | None, tuple[X, ...] of these (no"
                " tuple in a tuple), and frozen dataclasses"
            )
        yield (
            one.name,
            one.metadata.get("leaf", Leaf(None))._replace(annotation=annotation),
        )


def _values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns `{dotted path: value}` as the values stand in the dataclass."""
    values = {}
    for name, leaf in _fields(type(config)):
        value, path = getattr(config, name), f"{prefix}{name}"
        if not dataclasses.is_dataclass(leaf.annotation):
            values[path] = value
        elif type(value) is leaf.annotation:
            values |= _values(value, f"{path}.")
        else:
            expected = typing.cast(type, leaf.annotation).__name__
            raise ConfigError(f"{path}: expected {expected}, got {shown(value)}")
    return values


def _build(cls: type[C], values: Mapping[str, Any], prefix: str = "") -> C:
    """Builds the dataclass from `{dotted path: value}`; every path must be there."""
    arguments = {}
    for name, leaf in _fields(cls):
        path = f"{prefix}{name}"
        if dataclasses.is_dataclass(leaf.annotation):
            inner = typing.cast(type, leaf.annotation)
            arguments[name] = _build(inner, values, f"{path}.")
            continue
        try:
            arguments[name] = check(leaf, values[path])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    try:
        return cls(**arguments)
    except ValueError as error:  # what the class itself checks in __post_init__
        raise ConfigError(f"{prefix.rstrip('.') or cls.__name__}: {error}") from error


def flat_dict(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{dotted path: value}` of what `to_dict` returns."""
    flattened = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flattened |= flat_dict(value, f"{prefix}{name}.")
        else:
            flattened[f"{prefix}{name}"] = value
    return flattened
