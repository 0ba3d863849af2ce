"""Forming the matrix: for tests and small problems."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import trees
from bilevel.linear_solvers.base import LinearInfo, LinearSolver, Matvec, unit
from bilevel.trees import Tree


def dense(*, symmetric: bool = True) -> LinearSolver:
    """Forms A column by column and factorises it.

    Exact to rounding, and the only solver here that knows the whole spectrum; for up
    to about a thousand unknowns.  Of a singular A (an eigenvalue of at most d eps times
    the largest counts as zero) it gives the solution of least squares and minimum norm,
    which is `converged` only if b lies in the range of A.  It flattens the tree, so
    sharded leaves are gathered.

    Args:
        symmetric: A is symmetric (a Hessian): `positive_definite`, `smallest` and
            `largest` come from its eigenvalues.  Otherwise from singular values, and
            `positive_definite` refers to the symmetric part of A.

    Returns:
        A `LinearSolver`.  Cost: d products with A and O(d^3); memory d^2, for d
        unknowns.  An initial guess or a preconditioner is not needed and ignored.

    Example:
        >>> import jax.numpy as jnp
        >>> u, info = dense().solve(lambda u: -2.0 * u, jnp.ones(1), None, None)
        >>> float(u[0]), bool(info.positive_definite)
        (-0.5, False)
    """

    def solve(
        matvec: Matvec,
        rhs: Tree,
        initial: Tree | None = None,
        precondition: Matvec | None = None,
    ) -> tuple[Tree, LinearInfo]:
        del initial, precondition
        b, size = unit(rhs)
        flat, unravel = ravel_pytree(b)
        dtype = jnp.promote_types(flat.dtype, jnp.float32)
        columns = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0])(
            jnp.eye(flat.size, dtype=flat.dtype)
        )
        matrix, target = columns.T.astype(dtype), flat.astype(dtype)
        if symmetric:
            matrix = (matrix + matrix.T) / 2
            values, vectors = jnp.linalg.eigh(matrix)
            solution = vectors @ _divide(vectors.T @ target, values)
            lowest, magnitudes = values[0], jnp.abs(values)
        else:
            left, magnitudes, right = jnp.linalg.svd(matrix)
            solution = right.T @ _divide(left.T @ target, magnitudes)
            lowest = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[0]
        residual = jnp.linalg.norm(target - matrix @ solution)
        condition = jnp.max(magnitudes) / jnp.min(magnitudes)
        is_zero = size == 0
        info = LinearInfo(
            relative_residual=residual,
            error=jnp.where(is_zero, 0, trees.epsilon(rhs) * condition),
            num_steps=jnp.asarray(flat.size, jnp.int32),
            # A singular matrix leaves what is not in its range.
            converged=is_zero | (residual <= trees.epsilon(rhs) ** 0.5),
            positive_definite=is_zero | (lowest > 0),
            smallest=lowest if symmetric else jnp.min(magnitudes),
            largest=jnp.max(magnitudes),
        )
        return trees.scale(size, unravel(solution.astype(flat.dtype))), info

    return LinearSolver(solve, needs="symmetric" if symmetric else "general")


def _divide(target: jax.Array, values: jax.Array) -> jax.Array:
    """`target / values`, and 0 where a value is 0 up to rounding of the largest."""
    magnitudes = jnp.abs(values)
    rounding = len(values) * jnp.finfo(values.dtype).eps * jnp.max(magnitudes)
    is_zero = magnitudes <= rounding
    return jnp.where(is_zero, 0, target / jnp.where(is_zero, 1, values))
