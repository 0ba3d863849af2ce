"""A preconditioner that is a function of the user's."""

from collections.abc import Callable
from typing import Any

import jax

from bilevel import closures
from bilevel.derivatives import Oracle
from bilevel.inner_problem import Parameters, Preconditioner, UserFunction
from bilevel.trees import Tree

Function = Callable[[Tree, Tree, Any], Callable[[Tree], Tree]]
"""`(inner, outer, batch) -> apply`, with `apply(r)` about H^-1 r."""


def from_function(function: Function) -> Preconditioner:
    """Any approximate inverse of the Hessian, made anew at every solution.

    Args:
        function: `(inner, outer, batch) -> apply`, `apply` linear, symmetric and
            positive definite on trees like `inner`.  Both may close over anything.

    Returns:
        A `Preconditioner` without a state.  Cost: that of the function, once a
        solution, and once before an inner solve that uses it.

    Example:
        >>> import jax.numpy as jnp
        >>> curvatures = jnp.array([1.0, 100.0])
        >>> about = from_function(lambda w, x, batch: lambda r: r / curvatures)
    """

    def refresh(oracle: Oracle, inner: Tree, parameters: Parameters, state: Any) -> Any:
        del state
        make = oracle.functions["preconditioner"]
        apply = make(parameters, inner, parameters.outer, parameters.batch)
        hoisted, values = closures.hoist_traced(apply, inner)
        # A tree of arrays that carries a function along.
        if hoisted is None:
            return jax.tree_util.Partial(apply)
        return jax.tree_util.Partial(hoisted, values)

    user = UserFunction(
        "preconditioner",
        function,
        example=lambda *arguments: arguments,
        made=lambda w, *_: (w,),
    )
    return Preconditioner(
        name="from_function",
        init=lambda inner: None,
        refresh=refresh,
        apply=lambda state, r: state(r),
        functions=(user,),
    )
