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
_DEVIATION = math.sqrt(1 / 3 + 0.3 + 0.3**2)  # of numbers uniform in +-[0.3, 1.3]


class Precision(IntEnum):
    """How closely rounding is looked at, turn by turn."""

    COARSE = 0  # taken for `_COARSE` times of what it is, if that spares a solve
    ISOTROPIC = 1  # alike in all leaves
    LEAFWISE = 2  # every leaf has its own


# The Newton step stops at the rounding error, which is a few times smaller than what
# inner solvers end at.
_COARSE = 4.0
# Whether dG/dw follows a move of w is tried at so many times the rounding of w, and it
# follows if it moves by this share of what its linearisation says.
_TRIED = 8.0
_FOLLOWS = 0.25


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
        follows: `[]` bool, dG/dw moves with w as its linearisation says.
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
    follows: jax.Array
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

    Cost: a linear solve, another as far as w is not solved to rounding, and about 6 g.
    """
    inner, values = solved.inner, solved.differentiated.values
    residual = optimality(solved.problem, solved.differentiated)
    gap = residual(inner, values)
    linear = linearise(solved, result)
    random = _random_like(inner)
    noise, rounding = _noise(linear, inner, random, turn)
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
    tried = trees.sub(gap, residual(trees.axpy(-_TRIED, blur, inner), values))
    pushed = trees.scale(stretch, noise) if linear.is_definite else linear.apply(blur)
    along = blur if linear.is_definite else pushed
    follows = _follows(tried, pushed, blur, along, result.damping, rounding)
    # The two moves must not cancel.
    blur = trees.scale(jnp.where(trees.dot(newton, blur) < 0, -1, 1), blur)
    better = trees.sub(inner, trees.add(newton, blur))
    # The move by `blur` alone leaves a dG/dw of stretch * size.
    left, allowed = residual(better, values), 16 * stretch * size
    return Surroundings(
        inner=inner,
        better=better,
        newton=newton,
        blur=blur,
        left=left,
        rounding=allowed,
        is_solved=trees.norm(left) <= 0.1 * trees.norm(gap) + allowed,
        is_converged=trees.norm(gap) <= 10 * size / taken,
        follows=follows,
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
    """Three trees of random numbers of variance one and none near 0, always the same.

    Drawn at once, since most of a draw is program text.
    """
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    draws = [
        jax.random.uniform(k, (3, *x.shape), x.dtype, -1, 1)
        for k, x in zip(keys, leaves, strict=True)
    ]
    # A scalar leaf must not be left out by bad luck.
    draws = [(d + jnp.where(d < 0, -0.3, 0.3)) / _DEVIATION for d in draws]
    first, second, third = (treedef.unflatten([d[i] for d in draws]) for i in range(3))
    return first, second, third


def _noise(
    linear: Linearised, inner: Tree, random: tuple[Tree, Tree, Tree], turn: jax.Array
) -> tuple[Tree, Tree]:
    """A random vector of the size of the rounding errors of the optimality map.

    A applied to w with random factors has the size of the terms that cancel in A w; of
    two draws the larger counts, since one may cancel by chance.  In the first turns the
    vector is isotropic, so that it has a component along every direction, in the last
    every leaf has a size of its own.

    Returns:
        The vector, and leaf by leaf the norm of the rounding errors.
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

    own = jax.tree.map(
        lambda a, b: units * jnp.maximum(trees.norm(a), trees.norm(b)), first, second
    )

    def scaled(r: jax.Array, size: jax.Array) -> jax.Array:
        length = trees.norm(r)  # 0 of a leaf without elements
        size = jnp.maximum(size / jnp.where(length > 0, length, 1), 1e-6 * tiny)
        return (r * jnp.where(turn == Precision.LEAFWISE, size, whole)).astype(r.dtype)

    return jax.tree.map(scaled, z, own), own


def _follows(
    tried: Tree, pushed: Tree, blur: Tree, along: Tree, damping: float, rounding: Tree
) -> jax.Array:
    """Whether dG/dw moves with w as its linearisation A says, beyond its rounding.

    Rounding inside of G, of numbers far larger than w, makes dG/dw a staircase: it may
    be zero exactly wherever an inner solver stopped.  The linearisation knows nothing
    of the steps.

    Args:
        tried: dG/dw at w, less that at w - `_TRIED` blur.
        pushed: A blur, to be compared with it.
        blur: the move of w.
        along: the direction in which the two are compared.  Along `blur` itself A blur
            is known without a product with A, even where a solve was cut short: CG ends
            where what is left is perpendicular to its solution.
        damping: what A has and dG/dw has not.
        rounding: the size of the rounding errors of dG/dw, leaf by leaf.
    """
    length, size = trees.norm(along), trees.norm(blur)
    direction = trees.over(along, length)
    said = trees.dot(direction, trees.over(pushed, size))
    found = trees.dot(direction, trees.over(tried, size)) / _TRIED
    if damping:
        found = found + damping * trees.dot(direction, trees.over(blur, size))

    def stands_still(
        t: jax.Array, p: jax.Array, b: jax.Array, r: jax.Array
    ) -> jax.Array:
        # What is left without damping; of a leaf that G does not use, rounding.
        size = trees.norm(p - damping * b) if damping else trees.norm(p)
        is_clear = (_TRIED * size > 4 * r) & (size > 0.1 * trees.norm(p))
        return (trees.norm(t) == 0) & is_clear

    still = jax.tree.map(stands_still, tried, pushed, blur, rounding)
    stuck = jnp.any(jnp.stack(jax.tree.leaves(still)))
    # Written so that an overflow is no staircase.
    return ~(found < _FOLLOWS * said) & ~stuck


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
