"""Whether each element of a function's result depends on its own argument alone."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from bilevel.energy.jaxprs import inner, is_literal
from bilevel.trees import Tree

Reads: TypeAlias = frozenset[int]
"""The leaves of the argument that a value depends on, element by element."""

# Of a linear function, which a derivative is. The second group moves nothing where the
# shape stays.
_EACH = frozenset(
    {
        "add",
        "add_any",
        "complex",
        "conj",
        "convert_element_type",
        "copy",
        "copy_p",
        "div",
        "imag",
        "mul",
        "neg",
        "optimization_barrier",
        "real",
        "reduce_precision",
        "select_n",
        "sharding_constraint",
        "sub",
    }
    | {"broadcast_in_dim", "expand_dims", "reshape", "squeeze"}
)


def is_elementwise(function: Callable[[Tree], Tree], at: Tree) -> bool:
    """Whether the derivative of a function is diagonal, as far as its operations tell.

    Softmax, for one, is not elementwise: its units are coupled. Nothing is computed;
    where an operation is not known the answer is False.

    Args:
        function: of a tree, with a result of the same tree and shapes.
        at: the argument; only shapes and dtypes are looked at.

    Example:
        >>> import jax.numpy as jnp
        >>> is_elementwise(jnp.tanh, jnp.ones((2, 3)))
        True
        >>> is_elementwise(lambda a: jax.nn.softmax(a, -1), jnp.ones((2, 3)))
        False
    """

    def pulled(argument: Tree, cotangent: Tree) -> Tree:
        return jax.vjp(function, argument)[1](cotangent)[0]

    closed = jax.make_jaxpr(pulled)(at, jax.eval_shape(function, at))
    shapes = [leaf.shape for leaf in jax.tree.leaves(at)]
    none: list[Reads] = [frozenset() for _ in shapes]
    own: list[Reads] = [frozenset({number}) for number in range(len(shapes))]
    found = _walk(closed.jaxpr, [*none, *own])
    return found is not None and all(
        reads <= {number} for number, reads in enumerate(found)
    )


def _walk(jaxpr: Any, given: list[Reads]) -> list[Reads] | None:
    """What the results of linear operations read; None where elements are mixed."""
    reads = dict(zip(jaxpr.invars, given, strict=True))
    of = lambda var: frozenset() if is_literal(var) else reads.get(var, frozenset())
    for equation in jaxpr.eqns:
        some = [of(var) for var in equation.invars]
        if not any(some):
            continue
        called = inner(equation)
        if called is not None and len(called.invars) == len(some):
            found = _walk(called, some)
        else:
            found = _through(equation, some)
        if found is None:
            return None
        reads.update(zip(equation.outvars, found, strict=True))
    return [of(var) for var in jaxpr.outvars]


def _through(equation: Any, some: list[Reads]) -> list[Reads] | None:
    """What one operation's results read."""
    shapes = {one.aval.shape for one in equation.outvars}
    shapes |= {
        var.aval.shape
        for var, reads in zip(equation.invars, some, strict=True)
        if reads
    }
    if equation.primitive.name not in _EACH or len(shapes) > 1:
        return None
    return [frozenset().union(*some)] * len(equation.outvars)
