"""Newton-CG: the default for smooth problems."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.derivatives import Oracle, hvp
from bilevel.inner_solvers.base import (
    InnerSolver,
    StepInfo,
    check_limits,
    gradient_scale,
)
from bilevel.iteration import iterate_until
from bilevel.linear_solvers.cg import conjugate_gradients
from bilevel.trees import Tree


class NewtonState(NamedTuple):
    """Gradient norms, scalars: at the start and at the step before (0: not yet)."""

    first_norm: jax.Array
    last_norm: jax.Array


def newton(
    *,
    max_steps: int = 100,
    rtol: float | None = None,
    max_cg_steps: int = 1000,
) -> InnerSolver:
    """Newton's method; directions by CG, steps by backtracking.

    The direction d solves H d = -dG/dw to relative accuracy min(1/2, sqrt(|g|/|g_0|)),
    so that convergence is superlinear and early directions are cheap.  Where CG meets
    negative curvature, its last iterate (or the negative gradient) is used, a descent
    direction.  The step is halved until G decreases sufficiently (Armijo).

    Args:
        max_steps: the cap on Newton steps.
        rtol: stop after a direction with |d| <= rtol |w|, which estimates the relative
            error of w before the step; after it, the error is about its square.
            None as in `InnerSolver`.
        max_cg_steps: the cap on the CG steps of one direction.

    Returns:
        An `InnerSolver`.  Cost: 1 g + about 1 g per CG step + 0.5 g per trial step.

    Raises:
        ValueError: an argument is out of range.

    Source: Nocedal and Wright 2006, algorithm 7.1; Eisenstat and Walker 1996.
    """
    max_steps = check_limits("newton", max_steps, rtol)
    max_cg_steps = checks.count("newton: max_cg_steps", max_cg_steps, 1)

    def init(oracle: Oracle, inner: Tree, theta: Tree) -> NewtonState:
        del oracle, theta
        zero = jnp.zeros((), trees.real_dtype(inner))
        return NewtonState(zero, zero)

    def step(
        oracle: Oracle, inner: Tree, state: NewtonState, theta: Tree
    ) -> tuple[Tree, NewtonState, StepInfo]:
        value, gradient = oracle.value_and_gradient(inner, theta)
        norm = trees.norm(gradient)
        first = jnp.where(state.first_norm > 0, state.first_norm, norm)
        forcing = jnp.minimum(0.5, jnp.sqrt(norm / jnp.where(first > 0, first, 1)))
        direction = _direction(oracle, inner, theta, gradient, forcing, max_cg_steps)
        moved, rounding = _backtrack(oracle, inner, theta, value, gradient, direction)
        # Once decreases drown in rounding, only the gradient tells of progress.
        stuck = (state.last_norm > 0) & (norm > state.last_norm / 2)
        scale = gradient_scale(value, inner).astype(norm.dtype)
        size = trees.norm(moved)
        length = trees.norm(direction) / jnp.where(size > 0, size, 1)
        info = StepInfo(norm, scale, rounding & stuck, relative=length)
        return moved, NewtonState(first, norm), info

    return InnerSolver(
        init,
        step,
        _gradient,
        symmetric=True,
        max_steps=max_steps,
        rtol=rtol,
        reverse_differentiable=False,
    )


def _gradient(oracle: Oracle, inner: Tree, theta: Tree) -> Tree:
    return oracle.gradient(inner, theta)


def _direction(
    oracle: Oracle,
    inner: Tree,
    theta: Tree,
    gradient: Tree,
    forcing: jax.Array,
    max_cg_steps: int,
) -> Tree:
    product = hvp(oracle.gradient, inner, theta)
    solution, _ = conjugate_gradients(
        product, trees.scale(-1.0, gradient), rtol=forcing, max_steps=max_cg_steps
    )
    slope = trees.dot(solution, gradient)
    descends = (slope < 0) & jnp.isfinite(slope)
    return trees.where(descends, solution, trees.scale(-1.0, gradient))


def _backtrack(
    oracle: Oracle,
    inner: Tree,
    theta: Tree,
    value: jax.Array,
    gradient: Tree,
    direction: Tree,
) -> tuple[Tree, jax.Array]:
    """The first of w + d, w + d/2, ... that decreases G enough.

    Also returns whether the decrease that was to be expected is below rounding.
    """
    slope = trees.dot(gradient, direction)
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(inner))
    # Near the solution decreases drown in rounding: those count as decreases.
    slack = 10 * eps * jnp.abs(value)

    class Trial(NamedTuple):
        size: jax.Array
        value: jax.Array

    def at(size: jax.Array) -> Trial:
        return Trial(size, oracle.value(trees.axpy(size, direction, inner), theta))

    def accepted(trial: Trial) -> jax.Array:
        return trial.value <= value + 1e-4 * trial.size * slope + slack

    one = jnp.ones((), slope.dtype)
    trial, _ = iterate_until(lambda t: at(t.size / 2), at(one), accepted, max_steps=30)
    moved = trees.axpy(trial.size, direction, inner)
    unmeasurable = ~(jnp.abs(trial.size * slope) > slack)
    return trees.where(accepted(trial), moved, inner), unmeasurable
