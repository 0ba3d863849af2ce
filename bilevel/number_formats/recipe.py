"""How a value was made, so that it can be pickled though its functions are closures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Made = TypeVar("Made", bound=Any)


@dataclass(frozen=True, eq=False)
class Recipe:
    """A call that makes a named tuple of functions again.

    Two recipes are equal if they are one and the same, as the functions are.

    Attributes:
        factory: a function of a module.
        args: of the call.
        kwargs: of the call.
        fields: what the call made, to see what was replaced since.
    """

    factory: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fields: tuple[Any, ...]


def made_by(made: Made, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Made:
    """`made`, a named tuple with a field `recipe`, that knows the call that makes it.

    Args:
        made: what the factory is about to return.
        factory: itself.
        *args: all of its arguments.
        **kwargs: by name.
    """
    return made._replace(recipe=Recipe(factory, args, kwargs, tuple(made)))


def reduced(value: Any) -> tuple[Any, ...]:
    """What `__reduce__` returns: the call, and the fields that were replaced since."""
    recipe: Recipe | None = value.recipe
    if recipe is None:
        return type(value), tuple(value)
    changed = {
        name: now
        for name, now, then in zip(value._fields, value, recipe.fields, strict=True)
        if name != "recipe" and now is not then
    }
    return _again, (recipe.factory, recipe.args, recipe.kwargs, changed)


def _again(
    factory: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    changed: dict[str, Any],
) -> Any:
    made = factory(*args, **kwargs)
    return made._replace(**changed) if changed else made
