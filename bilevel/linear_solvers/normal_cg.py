"""Conjugate gradients on the normal equations."""

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.linear_solvers.base import LinearInfo, LinearSolver, Matvec, unit
from bilevel.linear_solvers.cg import cg
from bilevel.trees import Tree


def normal_cg(
    *, rtol: float | None = None, max_steps: int | None = None
) -> LinearSolver:
    """Solves A' A u = A' b by conjugate gradients, for an A that is not symmetric.

    The condition number is squared, so this is for the optimality maps of fixed points
    and constrained sweeps; for a Hessian use `cg`, which also notices where it is
    indefinite.

    Args:
        rtol: as in `cg`, on the relative error of the solution.
        max_steps: as in `cg`.

    Returns:
        A `LinearSolver`.  Cost: a product with A and one with A' per step.
        `positive_definite` says that A is nonsingular as far as was seen; `smallest`
        and `largest` are singular values.

    Raises:
        ValueError: an argument is out of range; a preconditioner is given.

    Example:
        >>> import jax.numpy as jnp
        >>> rotate = lambda u: jnp.stack([-u[1], u[0]])
        >>> u, info = normal_cg().solve(rotate, jnp.array([1.0, 0.0]), None, None)
        >>> [float(x) for x in u]
        [0.0, -1.0]
    """
    symmetric = cg(rtol=rtol, max_steps=max_steps)

    def solve(
        matvec: Matvec,
        rhs: Tree,
        initial: Tree | None = None,
        precondition: Matvec | None = None,
    ) -> tuple[Tree, LinearInfo]:
        if precondition is not None:
            raise ValueError("normal_cg takes no preconditioner.")
        b, size = unit(rhs)
        transpose = jax.linear_transpose(matvec, b)
        start = None if initial is None else trees.over(initial, size)
        solution, info = symmetric.solve(
            lambda u: transpose(matvec(u))[0], transpose(b)[0], start, None
        )
        residual = trees.sub(b, matvec(solution))
        residual_norm = jnp.sqrt(trees.dot(residual, residual))
        info = info._replace(
            relative_residual=residual_norm,
            # A least-squares solution of what has none is no solution.
            converged=info.converged & ((residual_norm <= 1e-2) | (size == 0)),
            smallest=jnp.sqrt(info.smallest),
            largest=jnp.sqrt(info.largest),
        )
        return trees.scale(size, solution), info

    return LinearSolver(solve)
