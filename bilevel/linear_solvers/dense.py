"""Forming the matrix: for tests and small problems."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import trees
from bilevel.linear_solvers.base import LinearInfo, LinearSolver, Matvec, epsilon, unit
from bilevel.trees import Tree


def dense(*, symmetric: bool = True) -> LinearSolver:
    """Forms A column by column and factorises it.

    Exact to rounding, and the only solver here that knows the whole spectrum; for up
    to about a thousand unknowns.  It flattens the tree, so sharded leaves are gathered.

    Args:
        symmetric: A is symmetric (a Hessian): `positive_definite`, `smallest` and
            `largest` come from its eigenvalues.  Otherwise LU, from singular values,
            and `positive_definite` refers to the symmetric part of A.

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
            solution = vectors @ ((vectors.T @ target) / values)
            lowest, magnitudes = values[0], jnp.abs(values)
        else:
            solution = jnp.linalg.solve(matrix, target)
            lowest = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[0]
            magnitudes = jnp.linalg.svd(matrix, compute_uv=False)
        residual = jnp.linalg.norm(target - matrix @ solution)
        condition = jnp.max(magnitudes) / jnp.min(magnitudes)
        is_zero = size == 0
        info = LinearInfo(
            residual_norm=residual,
            error=jnp.where(is_zero, 0, epsilon(rhs) * condition),
            num_steps=jnp.asarray(flat.size, jnp.int32),
            # A singular matrix leaves what is not in its range.
            converged=is_zero | (residual <= epsilon(rhs) ** 0.5),
            positive_definite=is_zero | (lowest > 0),
            smallest=lowest if symmetric else jnp.min(magnitudes),
            largest=jnp.max(magnitudes),
        )
        return trees.scale(size, unravel(solution.astype(flat.dtype))), info

    return LinearSolver(solve, symmetric_only=symmetric)
