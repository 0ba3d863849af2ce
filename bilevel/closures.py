"""Turns the values a function closes over into explicit arguments.

A custom derivative rule must see every traced value as an argument: what an objective
closes over would otherwise get no gradient, or leak.  `jax.closure_convert` caches by
the identity of the function, so that a bound method whose attribute changed returns the
old result; here every call traces anew.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import core


def hoist(
    function: Callable[..., Any], *example: Any
) -> tuple[Callable[..., Any], list[Any]]:
    """Hoists the constants of `function` into an argument.

    Args:
        function: any traceable function of pytrees.
        *example: arguments that fix structure, shapes and dtypes.

    Returns:
        `(hoisted, constants)` with
        `hoisted(constants, *arguments) == function(*arguments)` for arguments like
        `example`; `constants` is a list of arrays, traced ones included.

    Example:
        >>> import jax.numpy as jnp
        >>> data = jnp.arange(3.0)
        >>> hoisted, constants = hoist(lambda w: jnp.sum(w * data), 1.0)
        >>> float(hoisted(constants, 2.0))
        6.0
    """
    # A fresh lambda: make_jaxpr caches by the identity of what it traces.
    closed, out = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(
        *example
    )
    out_tree = jax.tree.structure(out)
    jaxpr = closed.jaxpr

    def hoisted(constants: list[Any], *arguments: Any) -> Any:
        # Optimisers may promote under x64; the program keeps the dtypes of its trace.
        flat = [
            x if x.dtype == v.aval.dtype else x.astype(v.aval.dtype)
            for x, v in zip(
                map(jnp.asarray, jax.tree.leaves(arguments)), jaxpr.invars, strict=True
            )
        ]
        return jax.tree.unflatten(out_tree, core.eval_jaxpr(jaxpr, constants, *flat))

    return hoisted, list(closed.consts)


def hoist_traced(
    function: Callable[..., Any], *example: Any
) -> tuple[Callable[..., Any] | None, list[Any]]:
    """As `hoist`, for a function that may close over traced values, and need not.

    Returns:
        `(hoisted, constants)`; `(None, [])` if nothing that the function closes over is
        traced, or if the function cannot be traced (one that calls NumPy, say, and
        works outside of `jit` only): then it may be used as it is.

    Example:
        >>> hoist_traced(lambda w: 2.0 * w, 1.0)
        (None, [])
    """
    try:
        hoisted, constants = hoist(function, *example)
    except jax.errors.JAXTypeError:
        return None, []
    if not any(isinstance(x, core.Tracer) for x in constants):
        return None, []
    return hoisted, constants


def depends_on(
    function: Callable[..., Any], arguments: tuple[Any, ...], wanted: Any
) -> bool:
    """Whether the output of `function` may depend on any leaf of one argument.

    A static check on the traced program: False is certain, True may be a coincidence
    of structure (an operation that multiplies by zero counts as dependence).

    Args:
        function: any traceable function.
        arguments: its arguments (values or shapes).
        wanted: the position in `arguments` that is asked about.
    """
    closed = jax.make_jaxpr(lambda *args: function(*args))(*arguments)
    reached: set[Any] = set()
    start = 0
    for position, argument in enumerate(arguments):
        size = len(jax.tree.leaves(argument))
        if position == wanted:
            reached.update(closed.jaxpr.invars[start : start + size])
        start += size
    return _reaches(closed.jaxpr, reached)


def _reaches(jaxpr: Any, reached: set[Any]) -> bool:
    for equation in jaxpr.eqns:
        # Literals are unhashable in some versions of jax and never depend on anything.
        inputs = [v for v in equation.invars if not hasattr(v, "val")]
        if reached.intersection(inputs):
            reached.update(equation.outvars)
    outputs = [v for v in jaxpr.outvars if not hasattr(v, "val")]
    return bool(reached.intersection(outputs))
