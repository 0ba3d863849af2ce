"""When a hypergradient can be trusted: one certificate for every rule.

A rule returned g at an approximate solution w.  The certificate

1. solves H z' = z for a random z, which finds negative curvature where symmetry hides
   it from the gradient, and the directions in which the solution is known badly;
2. takes one Newton step towards the solution, w1 = w - H^-1 dG/dw, and adds to it what
   the rounding of dG/dw can do to w, a multiple of z';
3. solves the adjoint equation at w1, from the rule's own adjoint, and compares g with
   the implicit hypergradient g1 there; a second Newton step tells whether w1 is near
   the solution, and whether F has a kink on the way to it.

Since the errors of g1 are of second order, |g - g1| estimates the error of g: that of
the inner solution, of the adjoint, of the rule (its bias), and rounding, which reaches
the gradient through two chained solves, as eps times the condition number squared.

Every solve stops as soon as what is left cannot change the verdict: near a solution the
Newton step is below rounding, and the rule's adjoint is accurate already.  Rounding is
first taken to be larger than it is, if that spares the Newton step; if the gradient is
not trusted even so, it is looked at more closely (see `Precision`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.hypergradients.base import OuterObjective, Pullback, Solved
from bilevel.hypergradients.comparison import MARGIN, compare
from bilevel.hypergradients.surroundings import Precision, look_around
from bilevel.inner_solvers.driver import InnerInfo
from bilevel.iteration import iterate_until


class Certificate(NamedTuple):
    """What is known of the error of a hypergradient; scalars.

    Attributes:
        error: its estimated error, relative to |dF/dx| + |J' u|; inf where none can be
            estimated, as `reason` says.
        trustworthy: the error, with a margin for the estimate, is at most `rtol`.
        reason: `[]` int32, the index in `REASONS` of the first test that failed; 0 if
            none did.
    """

    error: jax.Array
    trustworthy: jax.Array
    reason: jax.Array


REASONS = (
    "no test failed",
    "the rule's own linear solve, or nudged solve, did not reach its tolerance: it "
    "ended at its cap, or at rounding (is a narrower dtype computed in than w has?)",
    "the Hessian is not positive definite: the solution is no strict minimum, or it is "
    "one of many (an over-parametrised model, softmax with free biases: damp it, "
    "linear_solvers.cg(damping=...)); or a preconditioner is not",
    "the inner problem is not solved: a Newton step from there does not end at it",
    "a linear solve of the certificate ended at its cap",
    "the inner solution, which the cotangent depends on, is not accurate enough",
    "the estimated error, times a margin of 3, exceeds rtol",
    "a NaN, or an overflow",
    "dG/dw does not move with w as its Hessian says: rounding inside of G hides the "
    "solution (much larger numbers are added and subtracted again, or a narrower dtype "
    "is computed in than w has)",
    "unchecked: nobody looked at this one",
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
    _STAIRS,
    UNCHECKED,
) = range(len(REASONS))


def of_solve(info: InnerInfo) -> Certificate:
    """What an inner solve alone can tell: whether it ended at a solution."""
    reason = jnp.where(info.converged, _NONE, _UNSOLVED)
    return Certificate(info.relative_residual, info.converged, reason.astype(jnp.int32))


@jax.named_scope("certificate")  # the names of a profile
def certify(
    solved: Solved,
    outer_objective: OuterObjective,
    result: Pullback,
    rtol: float,
    *,
    forward: bool = False,
    when: jax.Array | bool = True,
) -> Certificate:
    """Estimates the error of a hypergradient against the derivative of the argmin.

    Args:
        solved: the inner problem, w where the pull-back was taken, and what is
            differentiated.
        outer_objective: the cotangent v; with its `gradient`, the change of dF/dw
            between w and the solution is accounted for as well, otherwise v is taken as
            given, and the relative error of w, leaf by leaf, stands for that of v.
        result: the pull-back to be certified.  Where its linear solve was damped, what
            is promised is the damped derivative, -J' (H + damping I)^-1 v.
        rtol: what must not be exceeded.
        forward: `result` is a tangent dw = A^-1 b in place of a pull-back: `cotangent`
            and `adjoint` are dw, the cotangent v is b, and the error is relative to
            |dw|.
        when: `[]` bool, possibly traced; where it is False nothing is computed, and
            `reason` is `UNCHECKED`.

    Returns:
        A `Certificate`.  Cost: one linear solve for a random right-hand side, two more
        as far as the verdict needs them, and about 11 g, once where the first look is
        enough, at most three times; skipped (and untrustworthy) if the rule's own solve
        ended at its cap or met negative curvature.
    """
    inner, values, cotangent = jax.lax.stop_gradient(
        (solved.inner, solved.differentiated.values, outer_objective.cotangent)
    )
    differentiated = solved.differentiated._replace(values=values)
    solved = solved._replace(inner=inner, differentiated=differentiated)
    outer_objective = outer_objective._replace(cotangent=cotangent)
    result = result._replace(
        cotangent=jax.lax.stop_gradient(result.cotangent),
        adjoint=jax.lax.stop_gradient(result.adjoint),
    )
    start = _failed_already(result, solved)
    start = start._replace(reason=jnp.where(when, start.reason, UNCHECKED))

    # A loop, of no turn where the rule has failed: the comparison is compiled once.
    def step(s: _Search) -> _Search:
        report = _turn(solved, outer_objective, result, rtol, s.turn, forward)
        return _Search(report.certificate, report.turn + 1, report.again)

    last, _ = iterate_until(
        step,
        _Search(start, jnp.zeros((), jnp.int32), start.reason == _NONE),
        lambda s: ~s.again,
        max_steps=len(Precision),
    )
    return last.certificate


class _Search(NamedTuple):
    certificate: Certificate
    turn: jax.Array
    again: jax.Array


def _failed_already(result: Pullback, solved: Solved) -> Certificate:
    """The rule's own report; one that did not look (None) has not failed.

    Where the solution is no minimum, curvature of either sign is no failure.
    """
    reason = jnp.asarray(_NONE, jnp.int32)
    info = jax.lax.stop_gradient(result.info)
    if info.converged is not None:
        reason = jnp.where(info.converged, reason, _RULE)
    is_minimum = solved.problem.solver.structure == "positive_definite"
    if info.positive_definite is not None and is_minimum:
        reason = jnp.where(info.positive_definite, reason, CURVATURE)
    has_nan = jnp.isnan(trees.norm(result.cotangent)) & (reason == _NONE)
    reason = jnp.where(has_nan, _NAN, reason)
    unknown = jnp.full((), jnp.inf, trees.real_dtype(solved.inner))
    return Certificate(unknown, jnp.zeros((), bool), reason)


class _Turn(NamedTuple):
    certificate: Certificate
    turn: jax.Array
    again: jax.Array  # rounding may have been taken too large: look again


def _turn(
    solved: Solved,
    outer_objective: OuterObjective,
    result: Pullback,
    rtol: float,
    turn: jax.Array,
    forward: bool,
) -> _Turn:
    """Compares `result`, found at w, with the implicit rule at a better point."""
    around = look_around(solved, outer_objective.cotangent, result, turn)
    there = compare(solved, outer_objective, result, rtol, around, forward)
    change, error = around.change, there.error
    is_flat = trees.norm(outer_objective.cotangent) == 0
    # Where dF/dw vanishes the gradient is dF/dx whatever dw*/dx is, at the solution.
    is_exact = (change <= rtol) & around.is_converged
    error = jnp.where(is_flat & is_exact, 0, error)
    needs_inner = is_flat if outer_objective.gradient is not None else True
    is_positive = around.systems.positive_definite & there.positive_definite
    failures = (
        (CURVATURE, ~is_positive),
        (_NAN, jnp.isnan(error)),
        (_STAIRS, ~around.follows),
        (_UNSOLVED, ~(around.is_solved & there.is_solved)),
        (_SOLVES, ~(around.systems.converged & there.converged)),
        (_INNER, ~(change <= rtol) & needs_inner),
        (_ERROR, ~(MARGIN * error <= rtol)),
    )
    reason = jnp.asarray(_NONE, jnp.int32)
    for code, failed in reversed(failures):
        reason = jnp.where(failed, code, reason)
    # The estimate supposes that all but the last two tests are passed.
    is_estimate = (reason == _NONE) | (reason == _INNER) | (reason == _ERROR)
    # How v itself would change is not known; it changes with w.
    is_given = outer_objective.gradient is None
    reported = jnp.maximum(error, change) if is_given else error
    # w and x may have different dtypes; the report has that of w.
    reported = jnp.where(is_estimate, reported, jnp.inf)
    reported = reported.astype(trees.real_dtype(solved.inner))
    certificate = Certificate(reported, reason == _NONE, reason)
    # What moves w too far can make any test fail; the same noise for all leaves is too
    # much for small ones.
    again = ((reason == _ERROR) | (reason == _INNER)) & around.is_converged
    again = again & (len(jax.tree.leaves(solved.inner)) > 1)
    again = jnp.where(around.turn == Precision.COARSE, reason != _NONE, again)
    again = again & (around.turn < Precision.LEAFWISE)
    return _Turn(certificate, around.turn, again)
