"""The gradient at a better point, held against the rule's: step 3 of a certificate."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.hypergradients.base import OuterObjective, Pullback, Solved
from bilevel.hypergradients.linearised import (
    System,
    linearise,
    ratio,
    rayleigh,
    solve_all,
)
from bilevel.hypergradients.surroundings import Surroundings
from bilevel.inner_problem import optimality
from bilevel.linear_solvers.cg import default_rtol
from bilevel.trees import Tree

# |g - g1| misses what g and g1 have in common; measured over random problems, the true
# error exceeded it by at most a factor of 2.
MARGIN = 3.0
# What a solve leaves out, relative to what the verdict needs.
_ACCURACY = 0.1
# Of Newton's method: the second step, relative to the first.
_CONTRACTION = 0.3


class Comparison(NamedTuple):
    """What the gradient at the better point says of the rule's; scalars.

    Attributes:
        error: of the gradient, relative.
        is_solved: a second Newton step is much shorter than the first.
        positive_definite: the Hessian at the better point, as far as the solves saw.
        converged: all solves.
    """

    error: jax.Array
    is_solved: jax.Array
    positive_definite: jax.Array
    converged: jax.Array


def compare(
    solved: Solved,
    outer_objective: OuterObjective,
    result: Pullback,
    rtol: float,
    around: Surroundings,
    forward: bool,
) -> Comparison:
    """Compares `result`, found at w, with the implicit rule at the better point.

    What is missing from the rule's adjoint at w, and what the way to the better point
    changes, are solved for one by one: in their sum they might cancel.

    Args:
        solved: the inner problem, w, and what is differentiated.
        outer_objective: the cotangent at w, and how it changes with w.
        result: of the rule.
        rtol: what must not be exceeded; solves stop where they cannot reach it.
        around: the better point, and how far rounding may move it.
        forward: as in `certificate.certify`.
    """
    better, values = around.better, solved.differentiated.values
    residual = optimality(solved.problem, solved.differentiated)
    total = trees.norm(result.cotangent)
    cotangent, moved = outer_objective.cotangent, None
    gradient = outer_objective.gradient
    if gradient is not None:
        _, direct = gradient(around.inner)
        cotangent, direct_moved = _other_side(gradient, around, cotangent)
        moved = trees.sub(direct, direct_moved)
        total = total + trees.norm(direct)

    there = linearise(solved._replace(inner=better), result)
    apply = [x.apply if forward else x.transpose for x in (around.linear, there)]
    effect = _identity if forward else _mixed(residual, better, values)
    # From the rule's own adjoint: a fresh solve could miss the same components.
    start = trees.zeros_like(better) if result.adjoint is None else result.adjoint
    lack = trees.sub(outer_objective.cotangent, apply[0](start))
    more = trees.sub(trees.sub(cotangent, apply[1](start)), lack)
    # A residual r of the adjoint equation changes u by at most |r| over the smallest
    # eigenvalue, most of it in the directions that `blur` shows; what that does to the
    # gradient tells which residual cannot matter.
    weak = trees.norm(effect(around.blur))
    smallest, known = around.smallest, around.systems.smallest
    known = jnp.where(known > 0, known, jnp.inf)
    if there.is_definite:
        # At the better point that direction may be bent less.
        bent = rayleigh(around.blur, there.apply(around.blur))
        smallest = jnp.minimum(smallest, bent)
        # With a preconditioner what is known are eigenvalues of another matrix.
        known = known if there.precondition else jnp.minimum(known, bent)
    strength = smallest * trees.norm(around.blur)
    needed = _ACCURACY * rtol / MARGIN * total
    floor = needed * strength / jnp.where(weak > 0, weak, jnp.inf)
    accuracy = default_rtol(better) if result.adjoint is None else _ACCURACY
    # A second Newton step, which is to be much shorter than the first, but for the way
    # back from `blur`: a small dG/dw alone says nothing of directions in which G is
    # nearly flat.  (Where A is not symmetric these solves are with A', which no Newton
    # step is; then a small dG/dw has to do.)
    left = around.left if there.is_definite else trees.zeros_like(better)
    systems = solve_all(
        there,
        System(lack, accuracy, floor, smallest=known),
        System(more, _ACCURACY, floor, smallest=known),
        System(left, _ACCURACY, around.rounding, smallest=known),
        transpose=not forward,
    )
    lacking, changing, second = systems.solutions
    allowed = _CONTRACTION * trees.norm(around.newton) + 2 * trees.norm(around.blur)
    is_solved = trees.norm(second) <= allowed
    adjoint = trees.add(start, lacking)
    sign = -1.0 if forward else 1.0  # the pull-back is -J' u
    pulled = effect(adjoint)
    here = trees.axpy(sign, pulled, result.cotangent)
    way = trees.scale(sign, effect(changing))
    if moved is not None:
        way = trees.add(way, moved)
    off = jnp.maximum(trees.norm(here), trees.norm(trees.add(here, way)))
    off = jnp.maximum(off, trees.norm(way))
    if gradient is not None:
        jump = _jump(gradient, better, cotangent, second)
        # Not inf times 0.
        by_kink = jump * trees.norm(pulled)
        off = jnp.maximum(off, jnp.where(jnp.isinf(jump), jump, by_kink))
    if not forward:
        # Where J' u cancels, the two round alike.
        scattered = effect(jax.tree.map(jnp.multiply, adjoint, around.random[1]))
        off = jnp.maximum(off, trees.epsilon(better) * trees.norm(scattered))
    definite, converged = systems.positive_definite, systems.converged
    return Comparison(ratio(off, total), is_solved, definite, converged)


Gradient = Callable[[Tree], tuple[Tree, Tree]]
"""`inner -> (dF/dw, dF/dx)`."""


def _other_side(
    gradient: Gradient, around: Surroundings, cotangent: Tree
) -> tuple[Tree, Tree]:
    """dF/dw and dF/dx where rounding may have moved w, on the side that changes more.

    A kink of F may lie on either side of the solution.
    """
    near = gradient(around.better)
    far = gradient(trees.axpy(2.0, around.blur, around.better))
    changes = [trees.norm(trees.sub(v, cotangent)) for v, _ in (near, far)]
    return trees.where(changes[1] > changes[0], far, near)


def _jump(gradient: Gradient, better: Tree, cotangent: Tree, second: Tree) -> jax.Array:
    """The relative change of dF/dw by a second Newton step; 0 where there is none.

    To the second order it is none, unless F has a kink on the way.
    """
    there = jax.lax.cond(
        trees.norm(second) > 0,
        lambda step: gradient(trees.sub(better, step))[0],
        lambda _: cotangent,
        second,
    )
    return ratio(trees.norm(trees.sub(there, cotangent)), trees.norm(cotangent))


def _identity(u: Tree) -> Tree:
    return u


def _mixed(
    residual: Callable[[Tree, Tree], Tree], inner: Tree, values: Tree
) -> Callable[[Tree], Tree]:
    """What an adjoint does to the gradient, u -> J' u, linearised once."""
    pull = jax.vjp(lambda v: residual(inner, v), values)[1]
    return lambda u: pull(u)[0]
