"""Conjugate gradients."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.iteration import iterate_until
from bilevel.linear_solvers.base import LinearInfo, LinearSolver, Matvec, epsilon, unit
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
    Everything is relative: multiplying the problem by a constant changes nothing.
    A direction with p'Ap <= 0 (an indefinite Hessian) ends the solve with the iterate
    before it and `positive_definite=False`.

    Args:
        rtol: tolerance on the relative error of the solution; None means 1e-7 in
            float64 and the square root of the rounding unit in narrower types.  With a
            preconditioner the error is measured in the energy norm.
        max_steps: the cap; None means 10 000.  A solve that ends there says
            `converged=False`.
        damping: added to the diagonal.  It biases the solution; `residual_norm` is
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
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"cg: max_steps must be at least 1, got {max_steps}.")
    if not (damping >= 0 and math.isfinite(damping)):
        raise ValueError(f"cg: damping must be finite and >= 0, got {damping}.")

    def solve(
        matvec: Matvec,
        rhs: Tree,
        initial: Tree | None = None,
        precondition: Matvec | None = None,
    ) -> tuple[Tree, LinearInfo]:
        return conjugate_gradients(
            matvec,
            rhs,
            initial,
            precondition,
            rtol=_default_rtol(rhs) if rtol is None else rtol,
            max_steps=10_000 if max_steps is None else max_steps,
            damping=damping,
        )

    return LinearSolver(solve, symmetric_only=True)


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
    indefinite: jax.Array


def _default_rtol(rhs: Tree) -> float:
    return max(1e-7, math.sqrt(epsilon(rhs)))


def conjugate_gradients(
    matvec: Matvec,
    rhs: Tree,
    initial: Tree | None = None,
    precondition: Matvec | None = None,
    *,
    rtol: jax.Array | float,
    max_steps: int,
    damping: float = 0.0,
) -> tuple[Tree, LinearInfo]:
    """The iteration behind `cg`, for callers whose tolerance is a traced value."""
    eps = epsilon(rhs)
    inverse = precondition if precondition is not None else lambda r: r
    b, scale = unit(rhs)

    def apply(u: Tree) -> Tree:
        return trees.axpy(damping, u, matvec(u)) if damping else matvec(u)

    zero = jnp.zeros((), trees.real_dtype(b))
    if initial is None:
        start, residual, inverse_quotient = trees.zeros_like(b), b, zero
    else:
        start = trees.scale(1 / jnp.where(scale > 0, scale, 1), initial)
        product = apply(start)
        residual = trees.sub(b, product)
        # After a good guess the residual lives on large eigenvalues; that there are
        # small ones, only the guess still knows.
        quotient = trees.dot(start, product)
        squared = trees.dot(start, start)
        inverse_quotient = squared / jnp.where(quotient > 0, quotient, jnp.inf)

    def error(s: _State) -> jax.Array:
        known = (s.ritz.inverse_norm2 > 0) & (s.solution_norm > 0)  # after a step
        safe = jnp.where(known, s.solution_norm, 1)
        if precondition is None:
            inverse = jnp.maximum(s.ritz.inverse_norm2, inverse_quotient)
            relative = s.residual_norm * inverse / safe
        else:  # in the energy norm, which needs no product with the inverse of M
            energy = trees.dot(s.solution, trees.sub(b, s.residual))
            bound = jnp.abs(s.rho) * s.ritz.inverse_norm2
            relative = jnp.sqrt(bound / jnp.where(energy > 0, energy, 1))
            relative = jnp.maximum(relative, s.residual_norm * inverse_quotient / safe)
        return jnp.where(known, relative, jnp.inf)

    def met(s: _State) -> jax.Array:
        # The recursive residual keeps falling where the true one, about eps L |u|, does
        # not; while it does, small eigenvalues are still being resolved.
        rounding = s.residual_norm <= 1e-3 * eps * s.largest * s.solution_norm
        return ~(error(s) > rtol) | rounding | ~(s.residual_norm > 0)

    def step(s: _State) -> _State:
        product = apply(s.direction)
        curvature = trees.dot(s.direction, product)
        indefinite = ~(curvature > 0)
        alpha = jnp.where(indefinite, 0, s.rho / jnp.where(indefinite, 1, curvature))
        solution = trees.axpy(alpha, s.direction, s.solution)
        residual = trees.axpy(-alpha, product, s.residual)
        z = inverse(residual)
        rho = trees.dot(residual, z)
        beta = rho / jnp.where(s.rho == 0, 1, s.rho)
        squared = rho if precondition is None else trees.dot(residual, residual)
        quotient = curvature / trees.dot(s.direction, s.direction)
        # With curvature <= 0, alpha is 0 and the solution stays as it was.
        return _State(
            solution=solution,
            residual=residual,
            direction=trees.axpy(beta, s.direction, z),
            rho=rho,
            residual_norm=jnp.sqrt(squared),
            solution_norm=jnp.sqrt(trees.dot(solution, solution)),
            ritz=_grow(s.ritz, alpha, beta),
            largest=jnp.maximum(s.largest, quotient),
            indefinite=indefinite,
        )

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
        indefinite=jnp.zeros((), bool),
    )
    state, num_steps = iterate_until(
        step, state, lambda s: met(s) | s.indefinite, max_steps=max_steps
    )

    # The recursion drifts away from the true residual; what is reported is the latter.
    true_residual = trees.sub(b, apply(state.solution))
    residual_norm = jnp.sqrt(trees.dot(true_residual, true_residual))
    true_rho = trees.dot(true_residual, inverse(true_residual))
    final = state._replace(
        residual=true_residual, residual_norm=residual_norm, rho=true_rho
    )
    is_zero = scale == 0
    info = LinearInfo(
        residual_norm=residual_norm,
        error=jnp.where(is_zero | (residual_norm == 0), 0, error(final)),
        num_steps=num_steps,
        converged=is_zero
        | (met(state) & ~state.indefinite & jnp.isfinite(residual_norm)),
        positive_definite=~state.indefinite,
        smallest=1 / jnp.where(num_steps > 0, state.ritz.inverse_norm2, jnp.nan),
        largest=jnp.where(num_steps > 0, state.largest, jnp.nan),
    )
    return trees.scale(scale, state.solution), info
