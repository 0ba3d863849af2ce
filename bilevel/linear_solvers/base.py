"""What a linear solver is, and what it reports."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.trees import Tree

Matvec = Callable[[Tree], Tree]


class LinearInfo(NamedTuple):
    """How a linear solve A u = b ended; all fields are scalars.

    Attributes:
        residual_norm: |A u - b| / |b|, recomputed from the solution (0 for b = 0).
        error: an estimate of |u - A^-1 b| / |u|, rounding included; inf if unknown.
        num_steps: `[]` int32, the iterations taken.
        converged: the requested tolerance was met.
        positive_definite: no direction of curvature <= 0 was met.
        smallest: the smallest eigenvalue of A seen (a Ritz value, so an overestimate);
            nan if the solver does not know.
        largest: the largest, likewise.
    """

    residual_norm: jax.Array
    error: jax.Array
    num_steps: jax.Array
    converged: jax.Array
    positive_definite: jax.Array
    smallest: jax.Array
    largest: jax.Array


class LinearSolver(NamedTuple):
    """Solves A u = b for a matrix-free A on pytrees.

    Attributes:
        solve: `(matvec, rhs, initial, precondition) -> (solution, LinearInfo)`.
            `initial` and `precondition` may be None; `precondition(r)` applies an
            approximate inverse of A.
        symmetric_only: whether A must be symmetric.
        damping: what is solved is (A + damping I) u = b.
    """

    solve: Callable[[Matvec, Tree, Tree | None, Matvec | None], tuple[Tree, LinearInfo]]
    symmetric_only: bool
    damping: float = 0.0


def unit(rhs: Tree) -> tuple[Tree, jax.Array]:
    """`rhs` scaled to norm one, and the norm; (0, 0) for a zero right-hand side.

    Solving for the unit vector makes every tolerance independent of the scale of the
    loss and keeps tiny cotangents from underflowing.  The barrier keeps a compiler from
    undoing that: it would multiply (c s) (c s) as c^2 s^2 where c is a constant.
    """
    size = trees.norm(rhs)
    scaled = trees.over(rhs, size)
    return jax.lax.optimization_barrier(scaled), size


def epsilon(tree: Tree) -> float:
    """The rounding unit of the narrowest leaf of `tree`."""
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree))
