"""What a linear solver is, and what it reports."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

from bilevel import trees
from bilevel.inner_problem import Pairs, Structure
from bilevel.trees import Tree

Matvec = Callable[[Tree], Tree]


class LinearInfo(NamedTuple):
    """How a linear solve A u = b ended; all fields are scalars.

    Attributes:
        relative_residual: |A u - b| / |b|, recomputed from the solution (0 for b = 0).
        error: an estimate of |u - A^-1 b| / |u|, rounding included; inf if unknown.
        num_steps: `[]` int32, the iterations taken.
        converged: the requested tolerance was met.
        positive_definite: no direction of curvature <= 0 was met.
        smallest: the smallest eigenvalue of A seen (a Ritz value, so an overestimate);
            nan if the solver does not know.
        largest: the largest, likewise.
        pairs: the last directions and their products with A (see
            `LinearSolver.adapted`); None if they were not asked for.
    """

    relative_residual: jax.Array
    error: jax.Array
    num_steps: jax.Array
    converged: jax.Array
    positive_definite: jax.Array
    smallest: jax.Array
    largest: jax.Array
    pairs: Pairs | None = None


class Solve(Protocol):
    """Solves A u = b."""

    def __call__(
        self,
        matvec: Matvec,
        rhs: Tree,
        initial: Tree | None = None,
        precondition: Matvec | None = None,
        /,
    ) -> tuple[Tree, LinearInfo]:
        """`(solution, info)`.

        Args:
            matvec: u -> A u.
            rhs: b.
            initial: where to start; None stands for zero, and costs no product.
            precondition: r -> about A^-1 r, or None.
        """
        ...


class LinearSolver(NamedTuple):
    """Solves A u = b for a matrix-free A on pytrees.

    Attributes:
        solve: see `Solve`.
        needs: the structure that A must have.
        damping: what is solved is (A + damping I) u = b.
        adapted: `(num_pairs, tolerance) -> Solve` that reports so many pairs, and stops
            at the tolerance where its own is a finer default (None: at its own); None
            for a solver that cannot.
    """

    solve: Solve
    needs: Structure = "general"
    damping: float = 0.0
    adapted: Callable[[int, jax.Array | None], Solve] | None = None


_ORDER: tuple[Structure, ...] = ("positive_definite", "symmetric", "general")


def require_structure(solver: LinearSolver, structure: Structure) -> None:
    """Raises `ValueError` if `solver` cannot solve with matrices of a structure."""
    if _ORDER.index(solver.needs) < _ORDER.index(structure):
        what = {"positive_definite": "positive-definite"}.get(
            solver.needs, solver.needs
        )
        raise ValueError(
            f"this linear solver needs a {what} matrix, but the Jacobian of the "
            "optimality map of the inner solver is "
            + {
                "symmetric": "symmetric only (a saddle, as of a Lagrangian). Use "
                "linear_solvers.normal_cg() or dense()",
                "general": "not symmetric (w - T(w) of a fixed point). Use "
                "linear_solvers.normal_cg(), dense(symmetric=False) or neumann",
            }[structure]
            + ", or leave the linear solver out."
        )


def unit(rhs: Tree) -> tuple[Tree, jax.Array]:
    """`rhs` scaled to norm one, and the norm; (0, 0) for a zero right-hand side.

    Solving for the unit vector makes every tolerance independent of the scale of the
    loss and keeps tiny cotangents from underflowing.  The barrier keeps a compiler from
    undoing that: it would multiply (c s) (c s) as c^2 s^2 where c is a constant.
    """
    size = trees.norm(rhs)
    scaled = trees.over(rhs, size)
    return jax.lax.optimization_barrier(scaled), size
