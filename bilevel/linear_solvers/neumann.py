"""The truncated Neumann series."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.iteration import iterate_until
from bilevel.linear_solvers.base import LinearInfo, LinearSolver, Matvec, unit
from bilevel.trees import Tree


def neumann(
    step_size: float, num_terms: int = 10, *, rtol: float = 0.0
) -> LinearSolver:
    """The Neumann series u = a sum_{k < K} (I - a A)^k b.

    Converges for any A, symmetric or not, with |I - a A| < 1; for a symmetric A that
    is 0 < a < 2 / L.  The relative error is (1 - a mu)^K: about kappa log(1 / error)
    terms are needed, so that ten terms are a biased estimate of the inverse.  K terms
    equal K back-propagated steps of gradient descent from the minimiser.

    Args:
        step_size: a > 0.
        num_terms: K >= 1.
        rtol: stop early at |A u - b| <= rtol |b|.  With 0, `converged` means that the
            residual fell below 1e-2.

    Returns:
        A `LinearSolver`.  Cost: K products with A, residual included; memory 2 vectors.
        An initial guess is refined: the series is summed for its residual.

    Raises:
        ValueError: an argument is out of range, or a preconditioner is given.

    Source: Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590, algorithm 3.

    Example:
        >>> import jax.numpy as jnp
        >>> u, info = neumann(0.4, 60).solve(lambda u: 2.0 * u, jnp.ones(1), None, None)
        >>> round(float(u[0]), 6)
        0.5
    """
    step_size = checks.positive("neumann: step_size", step_size)
    num_terms = checks.count("neumann: num_terms", num_terms, 1)
    if not 0 <= rtol < 1:
        raise ValueError(f"neumann: rtol must lie in [0, 1), got {rtol}.")

    def solve(
        matvec: Matvec,
        rhs: Tree,
        initial: Tree | None = None,
        precondition: Matvec | None = None,
    ) -> tuple[Tree, LinearInfo]:
        if precondition is not None:
            raise ValueError(
                "neumann takes no preconditioner; use linear_solvers.cg, or put it "
                "into the matrix."
            )
        return _solve(matvec, rhs, initial, step_size, num_terms, rtol)

    return LinearSolver(solve)


class _State(NamedTuple):
    solution: Tree
    residual: Tree  # b - A u = (I - a A)^k r_0
    norm: jax.Array
    ratio: jax.Array  # of the last two residual norms
    curved: jax.Array  # every r'Ar was positive


def _solve(
    matvec: Matvec,
    rhs: Tree,
    initial: Tree | None,
    step_size: float,
    num_terms: int,
    rtol: float,
) -> tuple[Tree, LinearInfo]:
    b, size = unit(rhs)
    if initial is None:
        start, residual = trees.zeros_like(b), b
    else:
        start = trees.over(initial, size)
        residual = trees.sub(b, matvec(start))

    def step(s: _State) -> _State:
        product = matvec(s.residual)
        remaining = trees.axpy(-step_size, product, s.residual)
        norm = jnp.sqrt(trees.dot(remaining, remaining))
        return _State(
            solution=trees.axpy(step_size, s.residual, s.solution),
            residual=remaining,
            norm=norm,
            ratio=norm / jnp.where(s.norm > 0, s.norm, 1),
            curved=s.curved & (trees.dot(s.residual, product) > 0),
        )

    norm = jnp.sqrt(trees.dot(residual, residual))
    state = _State(start, residual, norm, jnp.ones_like(norm), jnp.ones((), bool))
    state, num_steps = iterate_until(
        step, state, lambda s: ~(s.norm > rtol), max_steps=num_terms
    )
    # The terms left out sum to about a |r| / (1 - ratio) if they keep shrinking.
    rest = step_size * state.norm / jnp.where(state.ratio < 1, 1 - state.ratio, 1)
    solution_norm = jnp.sqrt(trees.dot(state.solution, state.solution))
    safe = jnp.where(solution_norm > 0, solution_norm, 1)
    info = LinearInfo(
        relative_residual=state.norm,
        error=jnp.where(
            state.norm == 0, 0, jnp.where(state.ratio < 1, rest / safe, jnp.inf)
        ),
        num_steps=num_steps,
        converged=state.norm <= (rtol or 1e-2),
        positive_definite=state.curved | (size == 0),
        smallest=jnp.full_like(norm, jnp.nan),
        largest=jnp.full_like(norm, jnp.nan),
    )
    return trees.scale(size, state.solution), info
