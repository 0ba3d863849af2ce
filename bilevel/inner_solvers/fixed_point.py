"""Iterating a map to its fixed point."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import Oracle
from bilevel.inner_problem import (
    InnerSolver,
    Parameters,
    StepInfo,
    Structure,
    UserFunction,
)
from bilevel.inner_solvers.driver import check_limits
from bilevel.trees import Tree


def fixed_point(
    mapping: Callable[[Tree, Tree, Any], Tree],
    *,
    max_steps: int = 1000,
    rtol: float | None = None,
    structure: Structure = "general",
) -> InnerSolver:
    """w <- T(w, outer, batch), until |w - T(w)| is small.

    For an equilibrium layer, or any iteration whose limit is the argmin.  The
    optimality map is w - T(w), so the implicit rule solves with I - dT/dw; the inner
    objective is only reported.  T need not be the step one would use by hand: rules
    that differentiate the argmin give the same answer for every T.

    Args:
        mapping: `T(inner, outer, batch) -> tree like inner`; a contraction.
        max_steps: the cap.
        rtol: stop at |w - T(w)| <= rtol max(|w|, |w_0 - T(w_0)|).
        structure: of I - dT/dw; "positive_definite" where dT/dw is symmetric (and T a
            contraction), so that CG may solve the adjoint equation.

    Returns:
        An `InnerSolver`, without linear tilts: nudged rules raise `ValueError`.
        Cost: one evaluation of T per step.

    Raises:
        ValueError: a cap or tolerance out of range.

    Example:
        >>> solver = fixed_point(lambda w, x, batch: 0.5 * w + x)
    """
    max_steps = check_limits("fixed_point", max_steps, rtol)

    def apply(oracle: Oracle, inner: Tree, parameters: Parameters) -> Tree:
        bound = oracle.functions["mapping"]
        return bound(parameters, inner, parameters.outer, parameters.batch)

    def init(oracle: Oracle, inner: Tree, parameters: Parameters) -> tuple[()]:
        del inner, parameters
        if oracle.tilt is not None or oracle.opaque:
            raise ValueError(
                "fixed_point iterates a given map, to which no nudge can be added. Use "
                "the implicit, unrolled or one_step rule, or an inner solver that "
                "minimises the inner objective."
            )
        return ()

    def step(
        oracle: Oracle, inner: Tree, state: tuple[()], parameters: Parameters
    ) -> tuple[Tree, tuple[()], StepInfo]:
        mapped = apply(oracle, inner, parameters)
        trees.require_like(mapped, inner, "mapping(inner, ...)", "inner")
        norm = trees.norm(trees.sub(inner, mapped))
        info = StepInfo(norm, trees.norm(inner), jnp.zeros((), bool))
        return mapped, state, info

    def optimality(oracle: Oracle, inner: Tree, parameters: Parameters) -> Tree:
        return trees.sub(inner, apply(oracle, inner, parameters))

    return InnerSolver(
        init=init,
        step=step,
        optimality=optimality,
        structure=structure,
        max_steps=max_steps,
        rtol=rtol,
        functions=(UserFunction("mapping", mapping, lambda *args: args),),
    )
