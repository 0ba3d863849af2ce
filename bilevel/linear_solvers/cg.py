"""Conjugate gradients."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.inner_problem import Pairs
from bilevel.iteration import iterate_until
from bilevel.linear_solvers.base import LinearInfo, LinearSolver, Matvec, Solve, unit
from bilevel.trees import Tree


def cg(
    *,
    rtol: float | None = None,
    max_steps: int | None = None,
    damping: float = 0.0,
) -> LinearSolver:
    """Conjugate gradients for a symmetric positive-definite A, or A + damping I.

    Stops when the estimated error of the solution, |r| / (mu |u|), is at most `rtol`;
    mu is the smallest Ritz value so far, so that the residual is pushed further down
    the worse the matrix is conditioned.  It also stops where rounding lets nothing
    improve any more, |r| <= 1e-3 eps L |u|; `error` then tells what was reached.
    Everything is relative: multiplying the problem by a constant changes nothing, as
    long as A u and its terms are normal floats (above about 1e-37 in float32).
    A direction with p'Ap <= 0, or positive by rounding only (an indefinite or singular
    A), ends the solve with the iterate before it and `positive_definite=False`.

    Args:
        rtol: tolerance on the relative error of the solution; None means 1e-7 in
            float64 and the square root of the rounding unit in narrower types.  With a
            preconditioner the error is measured in the energy norm.
        max_steps: the cap; None means 10 000.  A solve that ends there says
            `converged=False`.
        damping: added to the diagonal.  It biases the solution; `relative_residual` is
            that of the damped system.

    Returns:
        A `LinearSolver`.  Cost: one product with A per step, and two more if started
        from an initial guess (first residual, last residual); memory 4 vectors.

    Raises:
        ValueError: an argument is out of range.

    Source: Hestenes and Stiefel 1952; the estimate of the smallest Ritz value is the
    incremental norm estimate of Meurant and Tichy 2019, "Approximating the extreme
    Ritz values and upper bounds for the A-norm of the error in CG", section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> solution, info = cg().solve(lambda u: 2.0 * u, jnp.ones(3), None, None)
        >>> [round(float(x), 6) for x in solution], bool(info.converged)
        ([0.5, 0.5, 0.5], True)
    """
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"cg: rtol must lie in [0, 1), got {rtol}.")
    cap = 10_000 if max_steps is None else checks.count("cg: max_steps", max_steps, 1)
    if not (damping >= 0 and math.isfinite(damping)):
        raise ValueError(f"cg: damping must be finite and >= 0, got {damping}.")

    def adapted(num_pairs: int, enough: jax.Array | None) -> Solve:
        def solve(
            matvec: Matvec,
            rhs: Tree,
            initial: Tree | None = None,
            precondition: Matvec | None = None,
        ) -> tuple[Tree, LinearInfo]:
            tolerance = default_rtol(rhs) if rtol is None else rtol
            if rtol is None and enough is not None:
                tolerance = jnp.maximum(enough, tolerance)
            settings = Settings(tolerance, cap, damping, num_pairs=num_pairs)
            return conjugate_gradients(matvec, rhs, settings, initial, precondition)[:2]

        return solve

    return LinearSolver(
        adapted(0, None),
        needs="positive_definite",
        damping=float(damping),
        adapted=adapted,
    )


class _Ritz(NamedTuple):
    """The incremental estimate of the smallest Ritz value, 1 / inverse_norm2.

    CG builds the Cholesky factor B of its tridiagonal matrix: diagonal
    1 / sqrt(alpha_k), subdiagonal sqrt(beta_k / alpha_(k-1)).  The smallest Ritz value
    is 1 / |B^-1|^2, and |B^-1| is followed by one 2 x 2 eigenvalue problem per step.
    """

    inverse_norm2: jax.Array
    overlap: jax.Array  # last row of B^-1 times the approximate singular vector
    alpha: jax.Array  # of the step before
    beta: jax.Array  # likewise


def _grow(ritz: _Ritz, alpha: jax.Array, next_beta: jax.Array) -> _Ritz:
    previous = jnp.where(ritz.alpha > 0, ritz.alpha, 1)
    below = -jnp.sqrt(ritz.beta * alpha / previous) * ritz.overlap
    corner = jnp.sqrt(alpha)
    # [[a, b], [b, d]] is B^-1 B^-T restricted to the old vector and the new unit one.
    a, b, d = ritz.inverse_norm2 + below**2, below * corner, alpha
    angle = jnp.arctan2(2 * b, a - d) / 2
    return _Ritz(
        inverse_norm2=(a + d) / 2 + jnp.hypot((a - d) / 2, b),
        overlap=below * jnp.cos(angle) + corner * jnp.sin(angle),
        alpha=alpha,
        beta=next_beta,
    )


class _State(NamedTuple):
    solution: Tree
    residual: Tree  # b - A u, by recursion
    direction: Tree
    rho: jax.Array  # r' M^-1 r
    residual_norm: jax.Array
    solution_norm: jax.Array
    ritz: _Ritz
    largest: jax.Array  # the largest p'Ap / p'p so far
    curvature: jax.Array  # the last p'Ap / p'p
    indefinite: jax.Array
    pairs: Pairs | None  # the last ones, and where the next is written
    num_steps: jax.Array


class Settings(NamedTuple):
    """When `conjugate_gradients` stops; numbers, or traced scalars.

    Attributes:
        rtol: as in `cg`.
        max_steps: as in `cg`.
        damping: as in `cg`; not traced.
        floor: also stop, and call it converged, at |A u - b| <= floor (not relative).
        largest: a lower bound on |A|, from an earlier solve: the curvature of the first
            direction can then be told from rounding.
        smallest: an upper bound on the smallest eigenvalue of M^-1 A, from an earlier
            solve: a residual may hold little of its direction, and the error much.
        num_pairs: how many of the last directions, and products, are reported.
    """

    rtol: jax.Array | float
    max_steps: jax.Array | int
    damping: float = 0.0
    floor: jax.Array | float = 0.0
    largest: jax.Array | float = 0.0
    smallest: jax.Array | float = math.inf
    num_pairs: int = 0


class Direction(NamedTuple):
    """A direction p, and its curvature p'Ap / p'p."""

    vector: Tree
    curvature: jax.Array


class _System(NamedTuple):
    """A u = b, with what does not change from step to step."""

    apply: Matvec  # A, damped
    inverse: Matvec  # M^-1
    preconditioned: bool
    rhs: Tree  # b, of norm one
    inverse_quotient: jax.Array  # u'u / u'Au of the initial guess, 0 without one
    inverse_norm2: jax.Array  # a lower bound on |A^-1 M| that is known, or 0


def default_rtol(rhs: Tree) -> float:
    """The tolerance of `cg` on the relative error, for the dtypes of `rhs`."""
    return max(1e-7, math.sqrt(trees.epsilon(rhs)))


def conjugate_gradients(
    matvec: Matvec,
    rhs: Tree,
    settings: Settings,
    initial: Tree | None = None,
    precondition: Matvec | None = None,
) -> tuple[Tree, LinearInfo, Direction]:
    """The iteration behind `cg`, for callers whose settings are traced values.

    Returns:
        The solution, the report, and the search direction it ended with.  Where
        `info.positive_definite` is False, that direction has no positive curvature: a
        way out of a saddle.
    """
    b, scale = unit(rhs)
    nonzero = jnp.where(scale > 0, scale, 1)
    system, state = _start(matvec, b, initial, nonzero, precondition, settings)
    largest = jnp.asarray(settings.largest, state.largest.dtype)
    state = state._replace(largest=largest)
    eps, rtol = trees.epsilon(rhs), settings.rtol
    floor = settings.floor / nonzero

    def met(s: _State) -> jax.Array:
        # Written so that a NaN ends the loop.
        going_on = (_error(system, s) > rtol) & (s.residual_norm > floor)
        return ~going_on | _rounding(s, eps) | ~(s.residual_norm > 0)

    state, num_steps = iterate_until(
        lambda s: _step(system, s, eps),
        state,
        lambda s: met(s) | s.indefinite,
        max_steps=settings.max_steps,
    )

    # The recursion drifts away from the true residual step by step; what is reported
    # is the latter.
    true_residual = jax.lax.cond(
        num_steps > 0,
        lambda s: trees.sub(b, system.apply(s.solution)),
        lambda s: s.residual,
        state,
    )
    residual_norm = jnp.sqrt(trees.dot(true_residual, true_residual))
    final = state._replace(
        residual=true_residual,
        residual_norm=residual_norm,
        rho=trees.dot(true_residual, system.inverse(true_residual)),
    )
    is_zero = scale == 0
    # Written so that a NaN is not converged.
    accurate = (_error(system, state) <= rtol) | (state.residual_norm <= floor)
    reached = accurate | _rounding(state, eps) | (state.residual_norm == 0)
    drifted = residual_norm > 10 * state.residual_norm + 1e3 * eps * (
        state.largest * state.solution_norm + 1
    )
    info = LinearInfo(
        relative_residual=residual_norm,
        error=jnp.where(is_zero | (residual_norm == 0), 0, _error(system, final)),
        num_steps=num_steps,
        converged=is_zero
        | (reached & ~state.indefinite & jnp.isfinite(residual_norm) & ~drifted),
        positive_definite=~state.indefinite,
        smallest=1 / jnp.where(num_steps > 0, state.ritz.inverse_norm2, jnp.nan),
        largest=jnp.where(num_steps > 0, state.largest, jnp.nan),
        pairs=state.pairs,
    )
    direction = Direction(state.direction, state.curvature)
    return trees.scale(scale, state.solution), info, direction


def _start(
    matvec: Matvec,
    b: Tree,
    initial: Tree | None,
    scale: jax.Array,
    precondition: Matvec | None,
    settings: Settings,
) -> tuple[_System, _State]:
    damping = settings.damping

    def apply(u: Tree) -> Tree:
        return trees.axpy(damping, u, matvec(u)) if damping else matvec(u)

    zero = jnp.zeros((), trees.real_dtype(b))
    if initial is None:
        start, residual, inverse_quotient = trees.zeros_like(b), b, zero
    else:
        start = trees.over(initial, scale)
        product = apply(start)
        residual = trees.sub(b, product)
        # After a good guess the residual lives on large eigenvalues; that there are
        # small ones, only the guess still knows.
        quotient = trees.dot(start, product)
        squared = trees.dot(start, start)
        inverse_quotient = squared / jnp.where(quotient > 0, quotient, jnp.inf)
    inverse = precondition if precondition is not None else lambda r: r
    z = inverse(residual)
    state = _State(
        solution=start,
        residual=residual,
        direction=z,
        rho=trees.dot(residual, z),
        residual_norm=jnp.sqrt(trees.dot(residual, residual)),
        solution_norm=jnp.sqrt(trees.dot(start, start)),
        ritz=_Ritz(zero, zero, zero, zero),
        largest=zero,
        curvature=zero,
        indefinite=jnp.zeros((), bool),
        pairs=_no_pairs(b, settings.num_pairs),
        num_steps=jnp.zeros((), jnp.int32),
    )
    bound = jnp.asarray(1 / settings.smallest, zero.dtype)
    preconditioned = precondition is not None
    return _System(apply, inverse, preconditioned, b, inverse_quotient, bound), state


def _step(system: _System, s: _State, eps: float) -> _State:
    product = system.apply(s.direction)
    curvature = trees.dot(s.direction, product)
    squared = trees.dot(s.direction, s.direction)
    # A curvature that is rounding of A is none: a step along it would be without bound.
    quotient = curvature / jnp.where(squared > 0, squared, 1)
    indefinite = ~(quotient > eps * s.largest)
    alpha = jnp.where(indefinite, 0, s.rho / jnp.where(indefinite, 1, curvature))
    solution = trees.axpy(alpha, s.direction, s.solution)
    residual = trees.axpy(-alpha, product, s.residual)
    z = system.inverse(residual)
    rho = trees.dot(residual, z)
    beta = rho / jnp.where(s.rho == 0, 1, s.rho)
    norm2 = trees.dot(residual, residual) if system.preconditioned else rho
    # Along a direction of no positive curvature, alpha is 0: the solution and the
    # direction stay as they were.
    direction = trees.axpy(beta, s.direction, z)
    return _State(
        solution=solution,
        residual=residual,
        direction=trees.where(indefinite, s.direction, direction),
        rho=rho,
        residual_norm=jnp.sqrt(norm2),
        solution_norm=jnp.sqrt(trees.dot(solution, solution)),
        ritz=_grow(s.ritz, alpha, beta),
        largest=jnp.maximum(s.largest, jnp.abs(quotient)),
        curvature=quotient,
        indefinite=indefinite,
        pairs=_recorded(s, product),
        num_steps=s.num_steps + 1,
    )


def _no_pairs(like: Tree, num_pairs: int) -> Pairs | None:
    if num_pairs == 0:
        return None
    empty = jax.tree.map(lambda x: jnp.zeros((num_pairs, *x.shape), x.dtype), like)
    return Pairs(empty, empty)


def _recorded(s: _State, product: Tree) -> Pairs | None:
    if s.pairs is None:
        return None
    count = len(jax.tree.leaves(s.pairs.directions)[0])
    row = s.num_steps % count
    return jax.tree.map(
        lambda stack, x: stack.at[row].set(x), s.pairs, Pairs(s.direction, product)
    )


def _error(system: _System, s: _State) -> jax.Array:
    """The estimated relative error of the solution; inf before the first step."""
    known = (s.ritz.inverse_norm2 > 0) & (s.solution_norm > 0)
    safe = jnp.where(known, s.solution_norm, 1)
    inverse = jnp.maximum(s.ritz.inverse_norm2, system.inverse_norm2)
    if not system.preconditioned:
        inverse = jnp.maximum(inverse, system.inverse_quotient)
        relative = s.residual_norm * inverse / safe
    else:  # in the energy norm, which needs no product with the inverse of M
        energy = trees.dot(s.solution, trees.sub(system.rhs, s.residual))
        bound = jnp.abs(s.rho) * inverse
        relative = jnp.sqrt(bound / jnp.where(energy > 0, energy, 1))
        guess = s.residual_norm * system.inverse_quotient / safe
        relative = jnp.maximum(relative, guess)
    return jnp.where(known, relative, jnp.inf)


def _rounding(s: _State, eps: float) -> jax.Array:
    """Whether rounding lets nothing improve any more.

    The recursive residual keeps falling where the true one, about eps L |u|, does not;
    while it does, small eigenvalues are still being resolved.
    """
    return s.residual_norm <= 1e-3 * eps * s.largest * s.solution_norm
