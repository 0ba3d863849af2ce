"""A user's function that already returns the solution."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import Oracle
from bilevel.inner_solvers.base import InnerSolver, StepInfo
from bilevel.trees import Tree


def closed_form(
    solution: Callable[..., Tree],
    *,
    tilted: bool = False,
    differentiable: bool = False,
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

    Returns:
        An `InnerSolver` of one step.  Without `differentiable` it reports the gradient
        of G at the solution, so that a wrong `solution` shows as not converged.

    Example:
        >>> import jax.numpy as jnp
        >>> shrink = lambda inner0, x, batch, tilt: x - tilt
        >>> solver = closed_form(shrink, tilted=True)
    """

    def solve(oracle: Oracle, inner: Tree, theta: Tree) -> Tree:
        arguments = (jax.lax.stop_gradient(inner), theta.outer, theta.batch)
        if tilted:
            zero = trees.zeros_like(inner)
            tilt = zero if oracle.tilt is None else oracle.tilt
            out = solution(*arguments, tilt)
        elif oracle.tilt is not None:
            raise ValueError(
                "this closed-form solution takes no tilt, so it cannot be nudged. "
                "Write solution(inner0, outer, batch, tilt) for the argmin of "
                "G + <tilt, w> and pass tilted=True, or use the implicit rule."
            )
        else:
            out = solution(*arguments)
        trees.require_like(out, inner, "solution(...)", "the initial inner variable")
        return out

    def init(oracle: Oracle, inner: Tree, theta: Tree) -> tuple[()]:
        del oracle, inner, theta
        return ()

    def optimality(oracle: Oracle, inner: Tree, theta: Tree) -> Tree:
        if differentiable:
            return trees.sub(inner, solve(oracle, inner, theta))
        return oracle.gradient(inner, theta)

    def step(
        oracle: Oracle, inner: Tree, state: tuple[()], theta: Tree
    ) -> tuple[Tree, tuple[()], StepInfo]:
        solved = solve(oracle, inner, theta)
        if differentiable:
            norm = trees.norm(trees.sub(inner, solved))
            info = StepInfo(norm, trees.norm(solved), jnp.zeros((), bool))
        else:
            value, gradient = oracle.value_and_gradient(inner, theta)
            norm = trees.norm(gradient)
            scale = _gradient_scale(oracle, inner, solved, theta, value)
            info = StepInfo(norm, scale.astype(norm.dtype), jnp.zeros((), bool))
        return solved, state, info

    return InnerSolver(
        init,
        step,
        optimality,
        symmetric=True,
        max_steps=1,
        rtol=None,
        closed_form=True,
    )


def _gradient_scale(
    oracle: Oracle, inner: Tree, solved: Tree, theta: Tree, value: jax.Array
) -> jax.Array:
    """(G(0) - G(w)) / |w|, about half of curvature times |w|; 0 where it is not finite.

    One step tells nothing of the curvature, and a warm start is the solution already.
    """
    size = trees.norm(solved)
    rise = jnp.abs(oracle.value(trees.zeros_like(inner), theta) - value)
    scale = rise / jnp.where(size > 0, size, 1)
    return jnp.where((size > 0) & jnp.isfinite(scale), scale, 0)
