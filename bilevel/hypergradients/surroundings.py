"""Where the solution is, as far as w tells: steps 1 and 2 of a certificate."""

import math
from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.hypergradients.base import Pullback, Solved
from bilevel.hypergradients.linearised import (
    CAP,
    Linearised,
    SolvedSystems,
    System,
    linearise,
    ratio,
    rayleigh,
    solve,
    solve_all,
)
from bilevel.inner_problem import optimality
from bilevel.linear_solvers.cg import Settings, default_rtol
from bilevel.trees import Tree

# The gradient's rounding error, in units of eps |H| |w|.  Calibrated on random problems
# with exact answers: at 0.5 one weak direction of 6672 was judged wrongly.
_ROUNDING_UNITS = 0.8
_SMALL = 1000  # inner variables
_STEPS = 12  # of the random solve, at least


class Precision(IntEnum):
    """How closely rounding is looked at, turn by turn."""

    COARSE = 0  # taken for `_COARSE` times of what it is, if that spares a solve
    ISOTROPIC = 1  # alike in all leaves
    LEAFWISE = 2  # every leaf has its own


# The Newton step stops at the rounding error, which is a few times smaller than what
# inner solvers end at.
_COARSE = 4.0


class Surroundings(NamedTuple):
    """The solution as far as w tells, and how far rounding may move it.

    Attributes:
        inner: w.
        better: w after a Newton step, moved by as much as rounding may have moved it.
        newton: the first of the two moves, with its sign changed.
        blur: the second, likewise.
        left: dG/dw at the better point.
        rounding: `[]`, what the norm of `left` is at most if w - newton is a solution.
        is_solved: `[]` bool, the Newton step has made dG/dw small.
        is_converged: `[]` bool, there is nothing but rounding left to solve.
        change: `[]`, the relative error of w, that of the worst leaf.
        turn: `[]`, the `Precision` of all this.
        smallest: `[]`, about the smallest eigenvalue of H, or less.
        linear: the optimality map linearised at w.
        systems: the linear systems of both moves, solved.
        random: three random trees like w.
    """

    inner: Tree
    better: Tree
    newton: Tree
    blur: Tree
    left: Tree
    rounding: jax.Array
    is_solved: jax.Array
    is_converged: jax.Array
    change: jax.Array
    turn: jax.Array
    smallest: jax.Array
    linear: Linearised
    systems: SolvedSystems
    random: tuple[Tree, Tree, Tree]


def look_around(
    solved: Solved,
    cotangent: Tree,
    result: Pullback,
    turn: jax.Array,
) -> Surroundings:
    """Solves for a random direction and for the Newton step.

    Args:
        solved: the inner problem and w.
        cotangent: v, the right-hand side of the rule's own linear system.
        result: of the rule: its damping, preconditioner and number of steps are used.
        turn: `[]` int32, the lowest `Precision` to look with.

    Cost: a linear solve, another as far as w is not solved to rounding, and about 5 g.
    """
    inner, values = solved.inner, solved.differentiated.values
    residual = optimality(solved.problem, solved.differentiated)
    gap = residual(inner, values)
    linear = linearise(solved, result)
    random = _random_like(inner)
    noise = _noise(linear, inner, random, turn)
    size, count = trees.norm(noise), sum(x.size for x in jax.tree.leaves(inner))
    is_coarse = (turn == Precision.COARSE) & (trees.norm(gap) <= _COARSE * size)
    turn = jnp.where(is_coarse, turn, jnp.maximum(turn, Precision.ISOTROPIC))
    taken = jnp.where(is_coarse, _COARSE, 1)  # for more than it is
    noise, size = trees.scale(taken, noise), taken * size
    tight = default_rtol(inner)
    # Small problems are looked at thoroughly: what the random vector has of a direction
    # can be small by chance.  In large ones CG takes a quarter of the steps that the
    # rule took, and finds the extreme eigenvalues.
    budget = jnp.maximum(_STEPS, jax.lax.stop_gradient(result.info.num_steps) // 4)
    thorough = tight
    if count <= _SMALL:
        budget, thorough = CAP, 1e-2 * tight
    # Below rounding the Newton step is none; in the last turn every leaf is resolved.
    is_leafwise = turn == Precision.LEAFWISE
    floor = jnp.where(is_leafwise, 0, size)
    # The steps of small leaves must not drown in what is left of those of large ones.
    accurate = jnp.where(is_leafwise, 1e-3 * tight, tight)
    systems = solve_all(
        linear, System(noise, thorough, 0.0, budget), System(gap, accurate, floor)
    )
    blur, newton = systems.solutions
    length = trees.norm(blur)
    share = size / math.sqrt(max(count, 1))  # of one direction in the random vector
    smallest = share / jnp.where(length > 0, length, jnp.inf)
    stretch = jnp.ones_like(size)
    if linear.is_definite:
        smallest = _smallest(linear, systems, noise, cotangent, result)
        # By bad luck the random vector may have little of the weakest direction.
        expected = share / jnp.where(smallest > 0, smallest, jnp.inf)
        luck = expected / jnp.where(length > 0, length, jnp.inf)
        stretch = jnp.where(luck > 1, luck, 1)
        blur = trees.scale(stretch, blur)
    # The two moves must not cancel.
    blur = trees.scale(jnp.where(trees.dot(newton, blur) < 0, -1, 1), blur)
    better = trees.sub(inner, trees.add(newton, blur))
    # The move by `blur` alone leaves a dG/dw of stretch * size.
    left, rounding = residual(better, values), 16 * stretch * size
    return Surroundings(
        inner=inner,
        better=better,
        newton=newton,
        blur=blur,
        left=left,
        rounding=rounding,
        is_solved=trees.norm(left) <= 0.1 * trees.norm(gap) + rounding,
        is_converged=trees.norm(gap) <= 10 * size / taken,
        change=_change(inner, newton, blur, turn),
        turn=turn,
        smallest=smallest,
        linear=linear,
        systems=systems,
        random=random,
    )


def _smallest(
    linear: Linearised,
    systems: SolvedSystems,
    noise: Tree,
    cotangent: Tree,
    result: Pullback,
) -> jax.Array:
    """The smallest eigenvalue of a definite H that any of the solves saw; 0 for none.

    CG knows it; with a preconditioner CG knows that of another matrix.  Then it is read
    from the vectors that H^-1 stretched, a step of inverse iteration each.  They may by
    bad luck have little of the weakest direction, so that a small problem, where a
    solve is cheap, makes a second step.
    """
    if linear.precondition is None:
        return systems.smallest
    smallest = rayleigh(systems.solutions[0], noise)
    if result.adjoint is not None:
        smallest = jnp.minimum(smallest, rayleigh(result.adjoint, cotangent))
    if sum(x.size for x in jax.tree.leaves(noise)) <= _SMALL:
        length = trees.norm(systems.solutions[0])
        once = trees.over(systems.solutions[0], length)
        twice = solve(linear, once, Settings(default_rtol(noise), CAP))[0]
        smallest = jnp.minimum(smallest, rayleigh(twice, once))
    return jnp.where(jnp.isfinite(smallest), smallest, 0)


def _random_like(tree: Tree) -> tuple[Tree, Tree, Tree]:
    """Three trees of random numbers of variance one, always the same.

    Uniform and drawn at once, since most of a draw is program text.
    """
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    width = math.sqrt(3.0)
    draws = [
        jax.random.uniform(k, (3, *x.shape), x.dtype, -width, width)
        for k, x in zip(keys, leaves, strict=True)
    ]
    first, second, third = (treedef.unflatten([d[i] for d in draws]) for i in range(3))
    return first, second, third


def _noise(
    linear: Linearised, inner: Tree, random: tuple[Tree, Tree, Tree], turn: jax.Array
) -> Tree:
    """A random vector of the size of the rounding errors of the optimality map.

    A applied to w with random factors has the size of the terms that cancel in A w; of
    two draws the larger counts, since one may cancel by chance.  In the first turns the
    vector is isotropic, so that it has a component along every direction, in the last
    every leaf has a size of its own.
    """
    z, *factors = random
    first, second = (
        linear.apply(jax.tree.map(jnp.multiply, inner, f)) for f in factors
    )
    units = _ROUNDING_UNITS * trees.epsilon(inner)
    whole = jnp.maximum(trees.norm(first), trees.norm(second)) / trees.norm(z)
    # At the origin nothing rounds; a direction is needed all the same.
    tiny = jnp.finfo(whole.dtype).tiny * 1e8
    whole = jnp.maximum(units * whole, tiny)

    def scaled(r: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        own = jnp.maximum(trees.norm(a), trees.norm(b)) / jnp.maximum(trees.norm(r), 1)
        own = jnp.maximum(units * own, 1e-6 * tiny)
        return (r * jnp.where(turn == Precision.LEAFWISE, own, whole)).astype(r.dtype)

    return jax.tree.map(scaled, z, first, second)


def _change(inner: Tree, newton: Tree, blur: Tree, turn: jax.Array) -> jax.Array:
    """The relative error of w: the largest over leaves, each against its own size.

    With margins: measured over random problems, the rounding was up to 1.6 times what
    a random vector tells, and the rest, to second order the Newton step, up to 1.04.

    A leaf that is zero up to rounding (a bias of centred data) has no size of its own
    and is held against all of w; that a leaf is so small is said in the last turn
    only, where the rounding of every leaf is known by itself.
    """
    whole = trees.norm(inner)

    def of_leaf(w: jax.Array, step: jax.Array, rounding: jax.Array) -> jax.Array:
        size = jnp.maximum(trees.norm(w), trees.norm(w - step))
        moved, blurred = 1.1 * trees.norm(step), 2 * trees.norm(rounding)
        is_zero = (size <= blurred) & (moved <= 5 * blurred)
        is_zero = is_zero & (turn == Precision.LEAFWISE)
        return ratio(moved + blurred, jnp.where(is_zero, whole, size))

    changes = jax.tree.leaves(jax.tree.map(of_leaf, inner, newton, blur))
    # A solution that is the origin, as far as numbers tell it from the origin, has no
    # size that an error could be relative to.
    is_origin = (whole == 0) & (trees.norm(newton) <= trees.norm(blur))
    return jnp.where(is_origin, 0, jnp.max(jnp.stack(changes)))
