"""A user's function that already returns the solution."""

from collections.abc import Callable
from typing import Any

import jax
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
from bilevel.trees import Tree


def closed_form(
    solution: Callable[..., Tree],
    *,
    tilted: bool = False,
    differentiable: bool = False,
    structure: Structure = "positive_definite",
) -> InnerSolver:
    """w* = solution(inner0, outer, batch): a formula, or any solver of one's own.

    Args:
        solution: `(inner0, outer, batch) -> inner`, the argmin of the inner objective.
            With `tilted`, `(inner0, outer, batch, tilt) -> inner`, the argmin of
            G + <tilt, w>; nudged rules need this.
        tilted: whether `solution` takes a tilt.
        differentiable: `solution` is a JAX function whose derivative is meant, and G
            need not be smooth: the optimality map is then w - solution(outer, batch),
            instead of the gradient of G.
        structure: of the Hessian of G at the solution; "symmetric" for a stationary
            point that is no minimum, such as the saddle of a Lagrangian (the inner
            variable then holds the multipliers too).

    Returns:
        An `InnerSolver` of one step.  Without `differentiable` it reports the gradient
        of G at the solution, so that a wrong `solution` shows as not converged.

    Example:
        >>> import jax.numpy as jnp
        >>> shrink = lambda inner0, x, batch, tilt: x - tilt
        >>> solver = closed_form(shrink, tilted=True)
    """

    def solve(oracle: Oracle, inner: Tree, parameters: Parameters) -> Tree:
        call = oracle.functions["solution"]
        inner0 = jax.lax.stop_gradient(inner)
        arguments = (parameters, inner0, parameters.outer, parameters.batch)
        if tilted:
            zero = trees.zeros_like(inner)
            tilt = zero if oracle.tilt is None else oracle.tilt
            out = call(*arguments, tilt)
        elif oracle.tilt is not None:
            raise ValueError(
                "this closed-form solution takes no tilt, so it cannot be nudged. "
                "Write solution(inner0, outer, batch, tilt) for the argmin of "
                "G + <tilt, w> and pass tilted=True, or use the implicit rule."
            )
        else:
            out = call(*arguments)
        trees.require_like(out, inner, "solution(...)", "the initial inner variable")
        return out

    def init(oracle: Oracle, inner: Tree, parameters: Parameters) -> tuple[()]:
        del oracle, inner, parameters
        return ()

    def optimality(oracle: Oracle, inner: Tree, parameters: Parameters) -> Tree:
        if differentiable:
            return trees.sub(inner, solve(oracle, inner, parameters))
        return oracle.gradient(inner, parameters)

    def step(
        oracle: Oracle, inner: Tree, state: tuple[()], parameters: Parameters
    ) -> tuple[Tree, tuple[()], StepInfo]:
        solved = solve(oracle, inner, parameters)
        if differentiable:
            norm = trees.norm(trees.sub(inner, solved))
            info = StepInfo(norm, trees.norm(solved), jnp.zeros((), bool))
        else:
            value, gradient = oracle.value_and_gradient(inner, parameters)
            norm = trees.norm(gradient)
            scale = _gradient_scale(oracle, inner, solved, parameters, value)
            info = StepInfo(norm, scale.astype(norm.dtype), jnp.zeros((), bool))
        return solved, state, info

    def example(inner: Tree, outer: Tree, batch: Any) -> tuple[Any, ...]:
        return (inner, outer, batch, inner) if tilted else (inner, outer, batch)

    return InnerSolver(
        init=init,
        step=step,
        optimality=optimality,
        structure=structure,
        max_steps=1,
        rtol=None,
        functions=(UserFunction("solution", solution, example),),
        closed_form=True,
    )


def _gradient_scale(
    oracle: Oracle, inner: Tree, solved: Tree, parameters: Parameters, value: jax.Array
) -> jax.Array:
    """(G(0) - G(w)) / |w|, about half of curvature times |w|; 0 where it is not finite.

    One step tells nothing of the curvature, and a warm start is the solution already.
    """
    size = trees.norm(solved)
    rise = jnp.abs(oracle.value(trees.zeros_like(inner), parameters) - value)
    scale = rise / jnp.where(size > 0, size, 1)
    return jnp.where((size > 0) & jnp.isfinite(scale), scale, 0)
