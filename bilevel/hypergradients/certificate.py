"""When a hypergradient can be trusted: one certificate for every rule.

A rule returned g at an approximate solution w.  The certificate

1. solves H z' = z for a random z, which finds negative curvature where symmetry hides
   it from the gradient, and the directions in which the solution is known badly;
2. takes one Newton step towards the solution, w1 = w - H^-1 dG/dw, and adds to it what
   the rounding of dG/dw can do to w, a multiple of z';
3. solves the adjoint equation at w1, from the rule's own adjoint, and compares g with
   the implicit hypergradient g1 there.

Since the errors of g1 are of second order, |g - g1| estimates the error of g: that of
the inner solution, of the adjoint, of the rule (its bias), and rounding, which reaches
the gradient through two chained solves, as eps times the condition number squared.

Every solve stops as soon as what is left cannot change the verdict: near a solution the
Newton step is below rounding, and the rule's adjoint is accurate already.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import hvp
from bilevel.hypergradients.base import (
    Active,
    InnerProblem,
    Outer,
    Pullback,
    optimality,
)
from bilevel.inner_solvers.base import InnerInfo
from bilevel.iteration import iterate, iterate_until
from bilevel.linear_solvers.base import LinearInfo, Matvec, epsilon
from bilevel.linear_solvers.cg import Settings, conjugate_gradients, default_rtol
from bilevel.trees import Tree


class Certificate(NamedTuple):
    """What is known of the error of a hypergradient; scalars.

    Attributes:
        error: its estimated error, relative to |dF/dx| + |J' u|; nan if no estimate
            could be made.
        trustworthy: the error, with a margin for the estimate, is at most `rtol`.
        reason: `[]` int32, the index in `REASONS` of the first test that failed; 0 if
            none did.
    """

    error: jax.Array
    trustworthy: jax.Array
    reason: jax.Array


REASONS = (
    "no test failed",
    "the rule's own linear solve, or nudged solve, ended at its cap",
    "the Hessian is not positive definite: the solution is no strict minimum (for an "
    "over-parametrised model, damp it: linear_solvers.cg(damping=...))",
    "the inner problem is not solved: a Newton step from there does not end at it",
    "a linear solve of the certificate ended at its cap",
    "the inner solution, which the cotangent depends on, is not accurate enough",
    "the estimated error, times a margin of 3, exceeds rtol",
    "a NaN, or an overflow",
)
"""Why a gradient is untrustworthy, by `Certificate.reason`."""
(
    _NONE,
    _RULE,
    _CURVATURE,
    _UNSOLVED,
    _SOLVES,
    _INNER,
    _ERROR,
    _NAN,
) = range(len(REASONS))

# |g - g1| misses what g and g1 have in common; measured over random problems, the true
# error exceeded it by at most a factor of 2.
_MARGIN = 3.0
# The gradient's rounding error, in units of eps |H| |w|.
_ROUNDING_UNITS = 0.8
_CAP = 10_000  # steps of a linear solve
_SMALL = 1000  # inner variables
# What a solve leaves out, relative to what the verdict needs.
_ACCURACY = 0.1


def of_solve(info: InnerInfo) -> Certificate:
    """What an inner solve alone can tell: whether it ended at a solution."""
    reason = jnp.where(info.converged, _NONE, _UNSOLVED)
    return Certificate(info.relative_residual, info.converged, reason.astype(jnp.int32))


@jax.named_scope("certificate")  # the names of a profile
def certify(
    problem: InnerProblem,
    inner: Tree,
    active: Active,
    outer: Outer,
    result: Pullback,
    rtol: float,
    *,
    forward: bool = False,
) -> Certificate:
    """Estimates the error of a hypergradient against the derivative of the argmin.

    Args:
        problem: the inner problem.
        inner: w, where the pull-back was taken.
        active: what is differentiated.
        outer: the cotangent v; with `outer.gradient`, the change of dF/dw between w and
            the solution is accounted for as well, otherwise v is taken as given, and
            the relative error of w, leaf by leaf, stands for that of v.
        result: the pull-back to be certified.  Where its linear solve was damped, what
            is promised is the damped derivative, -J' (H + damping I)^-1 v.
        rtol: what must not be exceeded.
        forward: `result` is a tangent dw = A^-1 b in place of a pull-back: `cotangent`
            and `adjoint` are dw, `outer.cotangent` is b, and the error is relative to
            |dw|.

    Returns:
        A `Certificate`.  Cost: one linear solve for a random right-hand side, two more
        as far as the verdict needs them, and about 10 g; skipped (and untrustworthy) if
        the rule's own solve ended at its cap or met negative curvature.
    """
    inner, values, cotangent = jax.lax.stop_gradient(
        (inner, active.values, outer.cotangent)
    )
    active = active._replace(values=values)
    outer = outer._replace(cotangent=cotangent)
    result = result._replace(
        cotangent=jax.lax.stop_gradient(result.cotangent),
        adjoint=jax.lax.stop_gradient(result.adjoint),
    )
    start = _failed_already(result, inner)

    # At most two turns, none where the rule has failed; a loop, so that the comparison
    # is compiled once.  The second resolves rounding leaf by leaf.
    def step(s: _Search) -> _Search:
        report = _compare(problem, inner, active, outer, result, rtol, s.turn, forward)
        return _Search(report.certificate, s.turn + 1, report.again)

    last, _ = iterate_until(
        step,
        _Search(start, jnp.zeros((), jnp.int32), start.reason == _NONE),
        lambda s: ~s.again,
        max_steps=2,
    )
    return last.certificate


class _Search(NamedTuple):
    certificate: Certificate
    turn: jax.Array
    again: jax.Array


def _failed_already(result: Pullback, inner: Tree) -> Certificate:
    """The rule's own report; one that did not look (None) has not failed."""
    reason = jnp.asarray(_NONE, jnp.int32)
    info = jax.lax.stop_gradient(result.info)
    if info.converged is not None:
        reason = jnp.where(info.converged, reason, _RULE)
    if info.positive_definite is not None:
        reason = jnp.where(info.positive_definite, reason, _CURVATURE)
    nan = jnp.full((), jnp.nan, trees.real_dtype(inner))
    return Certificate(nan, jnp.zeros((), bool), reason)


class _Comparison(NamedTuple):
    certificate: Certificate
    again: jax.Array  # rounding was taken too large for some leaves: look again


class _Linear(NamedTuple):
    """The Jacobian A of the optimality map at a point, damped, and how to solve."""

    apply: Matvec
    transpose: Matvec
    symmetric: bool
    precondition: Matvec | None


def _linearise(
    problem: InnerProblem, inner: Tree, active: Active, result: Pullback
) -> _Linear:
    matvec = hvp(optimality(problem, active), inner, active.values)

    def apply(u: Tree) -> Tree:
        return trees.axpy(result.damping, u, matvec(u)) if result.damping else matvec(u)

    if problem.solver.symmetric:
        return _Linear(apply, apply, True, result.precondition)
    pull = jax.linear_transpose(apply, inner)
    return _Linear(apply, lambda u: pull(u)[0], False, None)


def _solve(
    linear: _Linear, rhs: Tree, settings: Settings, *, transpose: bool = False
) -> tuple[Tree, LinearInfo]:
    """A^-1 rhs, or A'^-1 rhs, by CG; on the normal equations if A is not symmetric."""
    if linear.symmetric:
        return conjugate_gradients(
            linear.apply, rhs, settings, None, linear.precondition
        )[:2]
    forward, back = linear.apply, linear.transpose
    if transpose:
        forward, back = back, forward
    settings = settings._replace(floor=0.0)
    return conjugate_gradients(lambda u: back(forward(u)), back(rhs), settings)[:2]


class _Solved(NamedTuple):
    """Two linear systems with one matrix, solved."""

    first: Tree
    second: Tree
    smallest: jax.Array  # eigenvalue seen by either; 0 if none was
    positive_definite: jax.Array  # as far as either saw
    converged: jax.Array  # both


class _System(NamedTuple):
    rhs: Tree
    rtol: jax.Array | float
    floor: jax.Array | float
    budget: jax.Array | int = _CAP  # steps; a smaller one than the cap may be used up


def _solve_both(
    linear: _Linear, first: _System, second: _System, *, transpose: bool = False
) -> _Solved:
    """One after the other by one compiled loop: each takes no more steps than it needs.

    Side by side they would take as many steps as the slower, of twice the work.
    """
    both = jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a), b]), first, second)

    def step(index: jax.Array) -> tuple[jax.Array, tuple[Tree, LinearInfo]]:
        system = jax.tree.map(lambda x: x[index], both)
        settings = Settings(system.rtol, system.budget, floor=system.floor)
        solution, info = _solve(linear, system.rhs, settings, transpose=transpose)
        info = info._replace(converged=info.converged | (system.budget < _CAP))
        return index + 1, (solution, info)

    zero = jnp.zeros((), jnp.int32)
    _, (solutions, info) = iterate(step, zero, num_steps=2, history=True)
    # fmin: nan where no step was taken.
    smallest = jnp.fmin(info.smallest[0], info.smallest[1])
    return _Solved(
        first=jax.tree.map(lambda x: x[0], solutions),
        second=jax.tree.map(lambda x: x[1], solutions),
        smallest=jnp.where(jnp.isfinite(smallest), smallest, 0),
        positive_definite=jnp.all(info.positive_definite),
        converged=jnp.all(info.converged),
    )


class _Surroundings(NamedTuple):
    """The solution as far as w tells, and how far rounding may move it."""

    better: Tree
    blur: Tree  # what rounding may move w by
    is_solved: jax.Array  # a Newton step ends at a solution
    is_converged: jax.Array  # there is nothing but rounding left to solve
    change: jax.Array  # the relative error of w
    linear: _Linear
    solved: _Solved
    random: tuple[Tree, Tree, Tree]


def _look_around(
    problem: InnerProblem, inner: Tree, active: Active, result: Pullback, turn: Any
) -> _Surroundings:
    """Steps 1 and 2: a random direction, and a Newton step."""
    residual = optimality(problem, active)
    gap = residual(inner, active.values)
    linear = _linearise(problem, inner, active, result)
    random = _random_like(inner)
    noise = _noise(linear, inner, random, turn)
    size, count = trees.norm(noise), sum(x.size for x in jax.tree.leaves(inner))
    tight = default_rtol(inner)
    # Small problems are looked at thoroughly: what the random vector has of a direction
    # can be small by chance.  In large ones CG takes a third of the steps that the rule
    # took, and finds the extreme eigenvalues.
    budget = jnp.maximum(50, jax.lax.stop_gradient(result.info.num_steps) // 3)
    thorough = tight
    if count <= _SMALL:
        budget, thorough = _CAP, 1e-2 * tight
    # Below rounding the Newton step is none; in the second turn every leaf is resolved.
    floor = jnp.where(turn == 0, size, 0)
    solved = _solve_both(
        linear, _System(noise, thorough, 0.0, budget), _System(gap, tight, floor)
    )
    blur, newton = solved.first, solved.second
    if linear.symmetric and linear.precondition is None:
        # By bad luck the random vector has little of the weakest direction.
        expected = size / (math.sqrt(max(count, 1)) * solved.smallest)
        found = trees.norm(blur)
        luck = expected / jnp.where(found > 0, found, jnp.inf)
        blur = trees.scale(jnp.where(luck > 1, luck, 1), blur)
    better = trees.sub(inner, trees.add(newton, blur))
    left = trees.norm(residual(better, active.values))
    return _Surroundings(
        better=better,
        blur=blur,
        is_solved=left <= 0.1 * trees.norm(gap) + 16 * size,
        is_converged=trees.norm(gap) <= 10 * size,
        change=_change(inner, newton, blur, turn),
        linear=linear,
        solved=solved,
        random=random,
    )


def _compare(
    problem: InnerProblem,
    inner: Tree,
    active: Active,
    outer: Outer,
    result: Pullback,
    rtol: float,
    turn: jax.Array,
    forward: bool,
) -> _Comparison:
    """Compares `result`, found at `inner`, with the implicit rule at a better point."""
    around = _look_around(problem, inner, active, result, turn)
    better, change = around.better, around.change
    residual = optimality(problem, active)
    total = trees.norm(result.cotangent)
    cotangent, moved = outer.cotangent, None
    if outer.gradient is not None:
        _, direct = outer.gradient(inner)
        cotangent, direct_better = outer.gradient(better)
        moved = trees.sub(direct, direct_better)
        total = total + trees.norm(direct)

    # 3. What is missing from the rule's adjoint at w, and what the way to the better
    # point changes, are solved for one by one: in their sum they might cancel.
    there = _linearise(problem, better, active, result)
    apply = [x.apply if forward else x.transpose for x in (around.linear, there)]
    effect = _identity if forward else _mixed(residual, better, active.values)
    start = trees.zeros_like(inner) if result.adjoint is None else result.adjoint
    lack = trees.sub(outer.cotangent, apply[0](start))
    more = trees.sub(trees.sub(cotangent, apply[1](start)), lack)
    # A residual r of the adjoint equation changes u by at most |r| over the smallest
    # eigenvalue, most of it in the directions that `blur` shows; what that does to the
    # gradient tells which residual cannot matter.
    weak = trees.norm(effect(around.blur))
    strength = around.solved.smallest * trees.norm(around.blur)
    needed = _ACCURACY * rtol / _MARGIN * total
    floor = needed * strength / jnp.where(weak > 0, weak, jnp.inf)
    accuracy = default_rtol(inner) if result.adjoint is None else _ACCURACY
    solved = _solve_both(
        there,
        _System(lack, accuracy, floor),
        _System(more, _ACCURACY, floor),
        transpose=not forward,
    )
    adjoint = trees.add(start, solved.first)
    sign = -1.0 if forward else 1.0  # the pull-back is -J' u
    here = trees.axpy(sign, effect(adjoint), result.cotangent)
    way = trees.scale(sign, effect(solved.second))
    if moved is not None:
        way = trees.add(way, moved)
    off = jnp.maximum(trees.norm(here), trees.norm(trees.add(here, way)))
    off = jnp.maximum(off, trees.norm(way))
    if not forward:
        # Where J' u cancels, the two round alike.
        scattered = effect(jax.tree.map(jnp.multiply, adjoint, around.random[1]))
        off = jnp.maximum(off, epsilon(inner) * trees.norm(scattered))
    error = _ratio(off, total)

    is_flat = trees.norm(outer.cotangent) == 0
    # Where dF/dw vanishes the gradient is dF/dx whatever dw*/dx is, at the solution.
    error = jnp.where(is_flat & (change <= rtol), 0, error)
    needs_inner = is_flat if outer.gradient is not None else True
    sides = (around.solved, solved)
    failures = (
        (_CURVATURE, ~(sides[0].positive_definite & sides[1].positive_definite)),
        (_NAN, jnp.isnan(error)),
        (_UNSOLVED, ~around.is_solved),
        (_SOLVES, ~(sides[0].converged & sides[1].converged)),
        (_INNER, ~(change <= rtol) & needs_inner),
        (_ERROR, ~(_MARGIN * error <= rtol)),
    )
    reason = jnp.asarray(_NONE, jnp.int32)
    for code, failed in reversed(failures):
        reason = jnp.where(failed, code, reason)
    # How v itself would change is not known; it changes with w.
    reported = jnp.maximum(error, change) if outer.gradient is None else error
    certificate = Certificate(reported, reason == _NONE, reason)
    # The noise of the first turn is the same for all leaves, too much for small ones.
    again = ((reason == _ERROR) | (reason == _INNER)) & around.is_converged
    return _Comparison(certificate, again & (len(jax.tree.leaves(inner)) > 1))


def _identity(u: Tree) -> Tree:
    return u


def _mixed(
    residual: Callable[[Tree, Tree], Tree], inner: Tree, values: Tree
) -> Callable[[Tree], Tree]:
    """What an adjoint does to the gradient, u -> J' u, linearised once."""
    pull = jax.vjp(lambda v: residual(inner, v), values)[1]
    return lambda u: pull(u)[0]


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
    linear: _Linear, inner: Tree, random: tuple[Tree, Tree, Tree], turn: jax.Array
) -> Tree:
    """A random vector of the size of the rounding errors of the optimality map.

    A applied to w with random factors has the size of the terms that cancel in A w; of
    two draws the larger counts, since one may cancel by chance.  In the first turn the
    vector is isotropic, so that it has a component along every direction, in the second
    every leaf has a size of its own.
    """
    z, *factors = random
    first, second = (
        linear.apply(jax.tree.map(jnp.multiply, inner, f)) for f in factors
    )
    units = _ROUNDING_UNITS * epsilon(inner)
    whole = jnp.maximum(trees.norm(first), trees.norm(second)) / trees.norm(z)
    # At the origin nothing rounds; a direction is needed all the same.
    tiny = jnp.finfo(whole.dtype).tiny * 1e8
    whole = jnp.maximum(units * whole, tiny)

    def scaled(r: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        own = jnp.maximum(trees.norm(a), trees.norm(b)) / jnp.maximum(trees.norm(r), 1)
        own = jnp.maximum(units * own, 1e-6 * tiny)
        return (r * jnp.where(turn == 0, whole, own)).astype(r.dtype)

    return jax.tree.map(scaled, z, first, second)


def _change(inner: Tree, newton: Tree, blur: Tree, turn: jax.Array) -> jax.Array:
    """The relative error of w: the largest over leaves, each against its own size.

    A leaf that is zero up to rounding (a bias of centred data) has no size of its own
    and is held against all of w; that a leaf is so small is said in the second turn
    only, where the rounding of every leaf is known by itself.
    """
    whole = trees.norm(inner)

    def of_leaf(w: jax.Array, step: jax.Array, rounding: jax.Array) -> jax.Array:
        size = jnp.maximum(trees.norm(w), trees.norm(w - step))
        moved, blurred = trees.norm(step), trees.norm(rounding)
        is_zero = (turn > 0) & (size <= 10 * blurred) & (moved <= 10 * blurred)
        return _ratio(moved + blurred, jnp.where(is_zero, whole, size))

    changes = jax.tree.leaves(jax.tree.map(of_leaf, inner, newton, blur))
    return jnp.max(jnp.stack(changes))


def _ratio(part: jax.Array, total: jax.Array) -> jax.Array:
    """part / total; inf for something of nothing, 0 for nothing."""
    whole = part / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, whole, jnp.where(part == 0, 0, jnp.inf))
