"""The public interface, as `tests/api.txt` lists it; a change of it is a decision.

    python tests/test_api.py --write

writes the list anew.  One line for each function, class and method that is public: the
names in `__all__` of the modules below, the modules among these, and the result types
of all of them, under the name by which they are imported.  A line has parameters or
fields; `=...` stands for a default.  Types and values of defaults are left out: they
may look different in another Python or jax.
"""

import dataclasses
import difflib
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODULES = (
    "bilevel",
    "bilevel.datasets",
    "bilevel.derivatives",
    "bilevel.energy",
    "bilevel.experiments",
    "bilevel.hypergradients",
    "bilevel.inner_solvers",
    "bilevel.linear_solvers",
    "bilevel.number_formats",
    "bilevel.preconditioners",
    "bilevel.samplers",
    "bilevel.solvers",
)
SNAPSHOT = Path(__file__).with_name("api.txt")
COMMAND = "python tests/test_api.py --write"


def public_api() -> list[str]:
    """The lines of `tests/api.txt`."""
    modules = {name: importlib.import_module(name) for name in MODULES}
    found: dict[str, Any] = {}
    while modules:
        name, module = modules.popitem()
        for key in public_names(module):
            value = getattr(module, key)
            if not isinstance(value, ModuleType):
                found[f"{name}.{key}"] = value
            elif value.__name__ not in MODULES:
                modules[value.__name__] = value
    listed = {value for value in found.values() if inspect.isclass(value)}
    results = {one for value in found.values() for one in result_types(value)}
    while results:
        cls = results.pop()
        if cls not in listed:
            listed.add(cls)
            found[f"{cls.__module__}.{cls.__qualname__}"] = cls
            results |= result_types(cls)
    return sorted(line for name, value in found.items() for line in lines(name, value))


def public_names(module: ModuleType) -> list[str]:
    """`__all__`; without one, functions and classes that were defined there."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def lines(name: str, value: Any) -> Iterator[str]:
    """Lines of a public object: its signature; for a class also those of methods."""
    if inspect.isfunction(value):
        yield f"{name}{parameters(value)}"
    elif inspect.isclass(value):
        yield f"{name}{class_parameters(value)}"
        for key, member in vars(value).items():
            if key.startswith("_") and key != "__call__":
                continue
            if isinstance(member, property):
                yield f"{name}.{key}"
            elif inspect.isfunction(member):
                yield f"{name}.{key}{parameters(member, skip=1)}"
            elif isinstance(member, classmethod | staticmethod):
                yield f"{name}.{key}{parameters(getattr(value, key))}"
    else:
        yield name


def class_parameters(cls: type) -> str:
    """The fields of a NamedTuple or dataclass, the base of an exception."""
    if hasattr(cls, "_fields"):
        fields = [(name, name in cls._field_defaults) for name in cls._fields]
    elif dataclasses.is_dataclass(cls):
        fields = [
            (one.name, (one.default, one.default_factory) != (dataclasses.MISSING,) * 2)
            for one in dataclasses.fields(cls)
        ]
    elif issubclass(cls, BaseException):
        return f" ({cls.__base__.__name__})"
    else:
        return ""
    return f"({', '.join(f'{name}=...' if has else name for name, has in fields)})"


def parameters(function: Callable[..., Any], skip: int = 0) -> str:
    """A signature without annotations and without the values of defaults."""
    plain = [
        one.replace(
            annotation=one.empty,
            default=one.default if one.default is one.empty else ...,
        )
        for one in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(plain[skip:])).replace("=Ellipsis", "=...")


def result_types(value: Any) -> set[type]:
    """Classes of this package that a function returns, or that are fields of a class.

    They are public although nobody imports them: their fields are read.
    """
    if inspect.isfunction(value):
        return set(classes_in(typing.get_type_hints(value).get("return")))
    if not inspect.isclass(value):
        return set()
    found = {one for hint in field_hints(value) for one in classes_in(hint)}
    methods = [one for key, one in vars(value).items() if not key.startswith("_")]
    for method in filter(inspect.isfunction, methods):
        found |= result_types(method)
    return found


def field_hints(cls: type) -> list[Any]:
    hints = typing.get_type_hints(cls)
    return [hint for name, hint in hints.items() if not name.startswith("_")]


def classes_in(hint: Any) -> Iterator[type]:
    """Classes of this package in an annotation; of a callable, in what it returns."""
    if inspect.isclass(hint) and hint.__module__.startswith("bilevel."):
        yield hint
    arguments = typing.get_args(hint)
    is_callable = typing.get_origin(hint) is typing.get_origin(Callable[..., Any])
    for one in arguments[-1:] if is_callable else arguments:
        yield from classes_in(one)


def test_api_is_that_of_the_list():
    stored, now = SNAPSHOT.read_text().splitlines(), public_api()
    if stored == now:
        return
    diff = difflib.unified_diff(stored, now, "tests/api.txt", "bilevel", "", "", 0, "")
    pytest.fail(
        "the public interface has changed:\n\n"
        + "\n".join(diff)
        + f"\n\nIf that is meant, run `{COMMAND}` and say it in CHANGELOG.md. What goes"
        " away, or takes other arguments, first warns for one minor release: README,"
        " 'Versions and deprecations'.",
        pytrace=False,
    )


def test_every_module_of_the_list_says_what_is_public():
    undeclared = [
        name
        for name in MODULES
        if not hasattr(importlib.import_module(name), "__all__")
    ]
    assert not undeclared


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {COMMAND}")
    SNAPSHOT.write_text("\n".join(public_api()) + "\n")
