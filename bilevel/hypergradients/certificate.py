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

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.hypergradients.base import (
    Active,
    InnerProblem,
    Outer,
    Pullback,
    optimality,
)
from bilevel.hypergradients.linearised import System, linearise, ratio, solve_all
from bilevel.hypergradients.surroundings import Surroundings, look_around
from bilevel.inner_solvers.base import InnerInfo
from bilevel.iteration import iterate_until
from bilevel.linear_solvers.base import epsilon
from bilevel.linear_solvers.cg import default_rtol
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
    "the Hessian is not positive definite: the solution is no strict minimum, or it is "
    "one of many (an over-parametrised model, softmax with free biases: damp it, "
    "linear_solvers.cg(damping=...)); or a preconditioner is not",
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
    CURVATURE,
    _UNSOLVED,
    _SOLVES,
    _INNER,
    _ERROR,
    _NAN,
) = range(len(REASONS))

# |g - g1| misses what g and g1 have in common; measured over random problems, the true
# error exceeded it by at most a factor of 2.
_MARGIN = 3.0
# What a solve leaves out, relative to what the verdict needs.
_ACCURACY = 0.1
# Of Newton's method: the second step, relative to the first.
_CONTRACTION = 0.3


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
        reason = jnp.where(info.positive_definite, reason, CURVATURE)
    nan = jnp.full((), jnp.nan, trees.real_dtype(inner))
    return Certificate(nan, jnp.zeros((), bool), reason)


class _Comparison(NamedTuple):
    certificate: Certificate
    again: jax.Array  # rounding was taken too large for some leaves: look again


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
    around = look_around(problem, inner, active, outer.cotangent, result, turn)
    there = _look_there(problem, active, outer, result, rtol, around, forward)
    change, error = around.change, there.error
    is_flat = trees.norm(outer.cotangent) == 0
    # Where dF/dw vanishes the gradient is dF/dx whatever dw*/dx is, at the solution.
    is_exact = (change <= rtol) & around.is_converged
    error = jnp.where(is_flat & is_exact, 0, error)
    needs_inner = is_flat if outer.gradient is not None else True
    is_positive = around.solved.positive_definite & there.positive_definite
    failures = (
        (CURVATURE, ~is_positive),
        (_NAN, jnp.isnan(error)),
        (_UNSOLVED, ~(around.is_solved & there.is_solved)),
        (_SOLVES, ~(around.solved.converged & there.converged)),
        (_INNER, ~(change <= rtol) & needs_inner),
        (_ERROR, ~(_MARGIN * error <= rtol)),
    )
    reason = jnp.asarray(_NONE, jnp.int32)
    for code, failed in reversed(failures):
        reason = jnp.where(failed, code, reason)
    # How v itself would change is not known; it changes with w.
    reported = jnp.maximum(error, change) if outer.gradient is None else error
    # w and x may have different dtypes; the report has that of w.
    reported = reported.astype(trees.real_dtype(inner))
    certificate = Certificate(reported, reason == _NONE, reason)
    # The noise of the first turn is the same for all leaves, too much for small ones.
    again = ((reason == _ERROR) | (reason == _INNER)) & around.is_converged
    return _Comparison(certificate, again & (len(jax.tree.leaves(inner)) > 1))


class _There(NamedTuple):
    error: jax.Array  # of the gradient, relative
    is_solved: jax.Array  # Newton's method contracts
    positive_definite: jax.Array
    converged: jax.Array


def _look_there(
    problem: InnerProblem,
    active: Active,
    outer: Outer,
    result: Pullback,
    rtol: float,
    around: Surroundings,
    forward: bool,
) -> _There:
    """Step 3: the gradient at the better point.

    What is missing from the rule's adjoint at w, and what the way to the better point
    changes, are solved for one by one: in their sum they might cancel.
    """
    better = around.better
    residual = optimality(problem, active)
    total = trees.norm(result.cotangent)
    cotangent, moved = outer.cotangent, None
    if outer.gradient is not None:
        _, direct = outer.gradient(around.inner)
        cotangent, direct_better = outer.gradient(better)
        moved = trees.sub(direct, direct_better)
        total = total + trees.norm(direct)

    there = linearise(problem, better, active, result)
    apply = [x.apply if forward else x.transpose for x in (around.linear, there)]
    effect = _identity if forward else _mixed(residual, better, active.values)
    # From the rule's own adjoint: a fresh solve could miss the same components.
    start = trees.zeros_like(better) if result.adjoint is None else result.adjoint
    lack = trees.sub(outer.cotangent, apply[0](start))
    more = trees.sub(trees.sub(cotangent, apply[1](start)), lack)
    # A residual r of the adjoint equation changes u by at most |r| over the smallest
    # eigenvalue, most of it in the directions that `blur` shows; what that does to the
    # gradient tells which residual cannot matter.
    weak = trees.norm(effect(around.blur))
    # At the better point that direction may be bent less.
    length = trees.norm(around.blur)
    bent = trees.dot(around.blur, there.apply(around.blur))
    bent = jnp.maximum(bent / jnp.where(length > 0, length, 1) ** 2, 0)
    strength = jnp.minimum(around.smallest, bent) * length
    needed = _ACCURACY * rtol / _MARGIN * total
    floor = needed * strength / jnp.where(weak > 0, weak, jnp.inf)
    known = around.solved.smallest
    if there.symmetric and there.precondition is None:
        known = jnp.minimum(known, bent)
    known = jnp.where(known > 0, known, jnp.inf)
    accuracy = default_rtol(better) if result.adjoint is None else _ACCURACY
    # A second Newton step, which is to be much shorter than the first: a small dG/dw
    # alone says nothing of directions in which G is nearly flat.
    left = around.left if there.symmetric else trees.zeros_like(better)
    solved = solve_all(
        there,
        System(lack, accuracy, floor, smallest=known),
        System(more, _ACCURACY, floor, smallest=known),
        System(left, _ACCURACY, around.rounding, smallest=known),
        transpose=not forward,
    )
    lacking, changing, second = solved.solutions
    is_solved = trees.norm(second) <= _CONTRACTION * trees.norm(around.newton)
    adjoint = trees.add(start, lacking)
    sign = -1.0 if forward else 1.0  # the pull-back is -J' u
    here = trees.axpy(sign, effect(adjoint), result.cotangent)
    way = trees.scale(sign, effect(changing))
    if moved is not None:
        way = trees.add(way, moved)
    off = jnp.maximum(trees.norm(here), trees.norm(trees.add(here, way)))
    off = jnp.maximum(off, trees.norm(way))
    if not forward:
        # Where J' u cancels, the two round alike.
        scattered = effect(jax.tree.map(jnp.multiply, adjoint, around.random[1]))
        off = jnp.maximum(off, epsilon(better) * trees.norm(scattered))
    definite, converged = solved.positive_definite, solved.converged
    return _There(ratio(off, total), is_solved, definite, converged)


def _identity(u: Tree) -> Tree:
    return u


def _mixed(
    residual: Callable[[Tree, Tree], Tree], inner: Tree, values: Tree
) -> Callable[[Tree], Tree]:
    """What an adjoint does to the gradient, u -> J' u, linearised once."""
    pull = jax.vjp(lambda v: residual(inner, v), values)[1]
    return lambda u: pull(u)[0]
