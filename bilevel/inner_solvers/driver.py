"""The one driver that runs every inner solver, and what it reports."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.derivatives import Oracle
from bilevel.inner_problem import InnerSolver, Parameters, StepInfo
from bilevel.iteration import Rematerialize, iterate, iterate_until
from bilevel.trees import Tree


class InnerInfo(NamedTuple):
    """How an inner solve ended.

    Attributes:
        residual_norm: |optimality| at the returned point.
        relative_residual: the same, relative to max(scale, its norm at the start).
        num_steps: `[]` int32, the steps taken.
        converged: the relative residual met the tolerance, or rounding allowed no
            further step.
        aux: the auxiliary output of the inner objective at the returned point.
    """

    residual_norm: jax.Array
    relative_residual: jax.Array
    num_steps: jax.Array
    converged: jax.Array
    aux: Any = None


class _Carry(NamedTuple):
    inner: Tree
    state: Any
    residual_norm: jax.Array  # at the point before
    relative: jax.Array  # likewise
    first: jax.Array
    scale: jax.Array  # the largest so far
    length: jax.Array  # of the last step
    stalled: jax.Array


def tolerance(
    solver: InnerSolver, inner: Tree, parameters: Parameters
) -> float | jax.Array:
    """The relative tolerance in force for a point of the dtypes of `inner`."""
    if solver.rtol is not None:
        return solver.rtol
    finest = trees.epsilon(inner) ** 0.75
    if parameters.tolerance is None:
        return finest
    return jnp.maximum(parameters.tolerance, finest)


@jax.named_scope("inner_solve")  # the names of a profile
def solve(
    solver: InnerSolver, oracle: Oracle, inner: Tree, parameters: Parameters
) -> tuple[Tree, InnerInfo]:
    """Runs `solver` from `inner` to its tolerance or its cap.

    Not differentiable in reverse mode: a pull-back rule does that.  Cost: the steps,
    and one optimality map for the final residual.
    """
    if solver.closed_form:
        first = start(solver, oracle, inner, parameters)
        carry = advance(solver, oracle, first, parameters)
        return carry.inner, report(solver, oracle, carry, parameters, 1)
    rtol = tolerance(solver, inner, parameters)

    def settled(c: _Carry) -> jax.Array:
        return ~(c.relative > rtol) | c.stalled

    def descend(inner: Tree, max_steps: jax.Array | int) -> tuple[_Carry, jax.Array]:
        return iterate_until(
            lambda c: advance(solver, oracle, c, parameters),
            start(solver, oracle, inner, parameters),
            settled,
            max_steps=max_steps,
        )

    # A nudged problem starts at a minimum.
    if solver.escape is None or oracle.tilt is not None or oracle.opaque:
        carry, num_steps = descend(inner, solver.max_steps)
        return carry.inner, report(solver, oracle, carry, parameters, num_steps)
    escape = solver.escape

    def attempt(s: _Attempt) -> _Attempt:
        carry, num_steps = descend(s.inner, solver.max_steps - s.num_steps)
        better, found = escape(oracle, carry.inner, parameters, s.attempt)
        num_steps = s.num_steps + num_steps
        found = found & settled(carry) & (num_steps < solver.max_steps)
        # What was found has not been descended from: it is no solution.
        carry = carry._replace(
            relative=jnp.where(found, jnp.inf, carry.relative),
            stalled=carry.stalled & ~found,
        )
        return _Attempt(
            trees.where(found, better, carry.inner),
            carry,
            num_steps,
            found,
            s.attempt + 1,
        )

    zero = jnp.zeros((), jnp.int32)
    first = _Attempt(
        inner, start(solver, oracle, inner, parameters), zero, jnp.ones((), bool), zero
    )
    last, _ = iterate_until(attempt, first, lambda s: ~s.found, max_steps=_ATTEMPTS)
    return last.carry.inner, report(
        solver, oracle, last.carry, parameters, last.num_steps
    )


# A saddle is left in a few attempts or, for an objective without a minimum, never.
_ATTEMPTS = 10


class _Attempt(NamedTuple):
    inner: Tree  # where the next one starts
    carry: _Carry
    num_steps: jax.Array  # of all attempts
    found: jax.Array  # a better point than the stationary one
    attempt: jax.Array


def start(
    solver: InnerSolver, oracle: Oracle, inner: Tree, parameters: Parameters
) -> _Carry:
    """The state of the driver before the first step."""
    if oracle.opaque and solver.closed_form:
        raise ValueError(
            "a closed-form inner solver cannot minimise an objective to which the "
            "outer function was added. Use nudged(..., linearised=True), or an "
            "iterative inner solver."
        )
    infinite = jnp.full((), jnp.inf, trees.real_dtype(inner))
    zero = jnp.zeros_like(infinite)
    state = solver.init(oracle, inner, parameters)
    return _Carry(
        inner=inner,
        state=state,
        residual_norm=infinite,
        relative=infinite,
        first=zero,
        scale=zero,
        length=zero,
        stalled=jnp.zeros((), bool),
    )


def advance(
    solver: InnerSolver, oracle: Oracle, carry: _Carry, parameters: Parameters
) -> _Carry:
    """One step of the driver."""
    inner, state, info = solver.step(oracle, carry.inner, carry.state, parameters)
    chex.assert_trees_all_equal_shapes_and_dtypes(inner, carry.inner)
    is_first = jnp.isinf(carry.residual_norm)
    first = jnp.where(is_first, info.residual_norm, carry.first)
    before, after = jax.lax.stop_gradient((carry.inner, inner))
    if info.scale is None:
        scale = jnp.where(is_first, 0, _curvature_scale(carry, info, before))
    else:
        scale = info.scale
    scale = jnp.maximum(carry.scale, scale)
    relative = info.relative
    if relative is None:
        relative = _ratio(info.residual_norm, jnp.maximum(scale, first))
    return _Carry(
        inner=inner,
        state=state,
        residual_norm=info.residual_norm,
        relative=relative,
        first=first,
        scale=scale,
        length=trees.norm(trees.sub(after, before)),
        stalled=info.stalled,
    )


def _curvature_scale(carry: _Carry, info: StepInfo, inner: Tree) -> jax.Array:
    """Curvature times |w|, from the last step; never more than |H| |w|."""
    change = jnp.abs(info.residual_norm - carry.residual_norm)
    return _ratio(change, carry.length) * trees.norm(inner)


def report(
    solver: InnerSolver,
    oracle: Oracle,
    carry: _Carry,
    parameters: Parameters,
    num_steps: Any,
) -> InnerInfo:
    """The final residual; costs one optimality map."""
    residual_norm = trees.norm(solver.optimality(oracle, carry.inner, parameters))
    relative = _ratio(residual_norm, jnp.maximum(carry.scale, carry.first))
    rtol = tolerance(solver, carry.inner, parameters)
    small = jnp.minimum(relative, carry.relative) <= rtol
    return InnerInfo(
        residual_norm=residual_norm,
        relative_residual=relative,
        num_steps=jnp.asarray(num_steps, jnp.int32),
        converged=(small | carry.stalled) & jnp.isfinite(residual_norm),
    )


def _ratio(residual_norm: jax.Array, reference: jax.Array) -> jax.Array:
    return residual_norm / jnp.where(reference > 0, reference, 1)


def trajectory(
    solver: InnerSolver,
    oracle: Oracle,
    carry: _Carry,
    parameters: Parameters,
    *,
    num_steps: int,
    rematerialize: Rematerialize = "none",
) -> _Carry:
    """Exactly `num_steps` steps, differentiable in both modes: the program unrolled."""
    return iterate(
        lambda c: advance(solver, oracle, c, parameters),
        carry,
        num_steps=num_steps,
        rematerialize=rematerialize,
    )


def check_limits(name: str, max_steps: int, rtol: float | None) -> int:
    """`max_steps` as an int; raises `ValueError` for it or `rtol` out of range."""
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"{name}: rtol must lie in [0, 1), got {rtol}.")
    return checks.count(f"{name}: max_steps", max_steps, 1)
