"""The optimality map linearised at a point, and the solves of a certificate with it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import hvp
from bilevel.hypergradients.base import Pullback, Solved
from bilevel.hypergradients.implicit_function import transposed
from bilevel.inner_problem import optimality
from bilevel.iteration import iterate
from bilevel.linear_solvers.base import LinearInfo, Matvec
from bilevel.linear_solvers.cg import Settings, conjugate_gradients
from bilevel.preconditioners.carried import inverse
from bilevel.trees import Tree

CAP = 10_000
"""Steps of a linear solve that is not given a budget."""


class Linearised(NamedTuple):
    """The Jacobian A of the optimality map at a point, damped, and how to solve."""

    apply: Matvec
    transpose: Matvec
    is_definite: bool  # symmetric and positive definite at a solution
    precondition: Matvec | None


def linearise(solved: Solved, result: Pullback) -> Linearised:
    """The optimality map at w, damped and preconditioned as the rule's solve."""
    residual = optimality(solved.problem, solved.differentiated)
    matvec = hvp(residual, solved.inner, solved.differentiated.values)

    def apply(u: Tree) -> Tree:
        return trees.axpy(result.damping, u, matvec(u)) if result.damping else matvec(u)

    structure = solved.problem.solver.structure
    if structure == "positive_definite":
        precondition = inverse(
            solved.problem.oracle, solved.differentiated.parameters()
        )
        return Linearised(apply, apply, True, precondition)
    if structure == "symmetric":
        return Linearised(apply, apply, False, None)
    return Linearised(apply, transposed(apply, solved.inner), False, None)


def solve(
    linear: Linearised, rhs: Tree, settings: Settings, *, transpose: bool = False
) -> tuple[Tree, LinearInfo]:
    """A^-1 rhs, or A'^-1 rhs, by CG; on the normal equations if A is not definite."""
    if linear.is_definite:
        return conjugate_gradients(
            linear.apply, rhs, settings, None, linear.precondition
        )[:2]
    forward, back = linear.apply, linear.transpose
    if transpose:
        forward, back = back, forward
    settings = settings._replace(floor=0.0)
    return conjugate_gradients(lambda u: back(forward(u)), back(rhs), settings)[:2]


class SolvedSystems(NamedTuple):
    """Linear systems with one matrix, solved."""

    solutions: tuple[Tree, ...]
    smallest: jax.Array  # eigenvalue seen by any (of M^-1 A, A'A); 0 if none was
    positive_definite: jax.Array  # as far as any saw
    converged: jax.Array  # all


class System(NamedTuple):
    """A right-hand side, and when its solve stops (see `cg.Settings`)."""

    rhs: Tree
    rtol: jax.Array | float
    floor: jax.Array | float
    budget: jax.Array | int = CAP  # steps; a smaller one than the cap may be used up
    smallest: jax.Array | float = math.inf  # eigenvalue that an earlier solve saw


def solve_all(
    linear: Linearised, *systems: System, transpose: bool = False
) -> SolvedSystems:
    """One after the other by one compiled loop: each takes no more steps than it needs.

    Side by side they would take as many steps as the slowest, each for all of them.  An
    eigenvalue that one of them saw stays known to the next, whose right-hand side may
    hold little of its direction.
    """
    together = jax.tree.map(
        lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *systems
    )

    def step(carry: tuple[jax.Array, jax.Array]) -> Any:
        index, seen = carry
        system = jax.tree.map(lambda x: x[index], together)
        known = jnp.minimum(system.smallest, seen)
        settings = Settings(
            system.rtol, system.budget, floor=system.floor, smallest=known
        )
        solution, info = solve(linear, system.rhs, settings, transpose=transpose)
        info = info._replace(converged=info.converged | (system.budget < CAP))
        # nan where no step was taken.
        return (index + 1, jnp.fmin(seen, info.smallest)), (solution, info)

    count, dtype = len(systems), trees.real_dtype(systems[0].rhs)
    start = jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, dtype)
    (_, smallest), (stacked, info) = iterate(step, start, num_steps=count, history=True)
    rows = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]
    return SolvedSystems(
        solutions=tuple(rows),
        smallest=jnp.where(jnp.isfinite(smallest), smallest, 0),
        positive_definite=jnp.all(info.positive_definite),
        converged=jnp.all(info.converged),
    )


def rayleigh(vector: Tree, product: Tree) -> jax.Array:
    """u'Hu / u'u, given u and H u of any size; inf where it is not positive.

    For u = H^-1 b, a step of inverse iteration, b is the product.
    """
    size = trees.norm(vector)
    quotient = trees.dot(trees.over(vector, size), trees.over(product, size))
    return jnp.where((size > 0) & (quotient > 0), quotient, jnp.inf)


def ratio(part: jax.Array, total: jax.Array) -> jax.Array:
    """part / total; inf for something of nothing, 0 for nothing."""
    whole = part / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, whole, jnp.where(part == 0, 0, jnp.inf))
