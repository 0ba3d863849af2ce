"""When a hypergradient can be trusted: one certificate for every rule.

A rule returned g at an approximate solution w.  The certificate takes one Newton step
towards the solution, w1 = w - H^-1 dG/dw, solves the adjoint equation there, and
compares g with the resulting implicit hypergradient g1.  Since the errors of g1 are of
second order, |g - g1| estimates the error of g: that of the inner solution, of the
adjoint, and of the rule (its bias) at once.

Rounding hides from a single comparison: where the computed gradient is zero, the true
one is not.  If the conditioning leaves room for that, the comparison is repeated with w
and x moved by a few rounding units; every repetition meets other rounding errors, and
the largest difference counts.  (The batch stays: a moved copy would double the data.)
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import hvp, mixed_vjp
from bilevel.hypergradients.base import (
    Active,
    InnerProblem,
    Outer,
    Pullback,
    Trust,
    optimality,
)
from bilevel.iteration import iterate_until
from bilevel.linear_solvers import LinearInfo, cg, normal_cg
from bilevel.trees import Tree


class Certificate(NamedTuple):
    """What is known of the error of a hypergradient; scalars.

    Attributes:
        error: its estimated error, relative to |dF/dx| + |J' u|; inf if unknown.
        trustworthy: the error, with a margin for the estimate, is at most `rtol`.
    """

    error: jax.Array
    trustworthy: jax.Array


# |g - g1| misses what g and g1 have in common; measured over random problems, the true
# error exceeded it by at most a factor of 2.
_MARGIN = 3.0
# Rounding is probed where (rounding unit) * (condition number seen by CG) comes within
# this factor of the tolerance: CG may see a condition number 20 times too small.
_PROBE_WITHIN = 100.0
_NUM_PROBES = 4


@jax.named_scope("certificate")  # the names of a profile
def certify(
    problem: InnerProblem,
    inner: Tree,
    active: Active,
    outer: Outer,
    result: Pullback,
    rtol: float,
) -> Certificate:
    """Estimates the error of a hypergradient against the derivative of the argmin.

    Args:
        problem: the inner problem.
        inner: w, where the pull-back was taken.
        active: what is differentiated.
        outer: the cotangent v; with `outer.gradient`, the change of dF/dw between w and
            the solution is accounted for as well, otherwise v is taken as given.
        result: the pull-back to be certified.
        rtol: what must not be exceeded.

    Returns:
        A `Certificate`.  Cost: two linear solves, three linearisations, and five times
        that where rounding has to be probed; skipped (and untrustworthy) if
        the rule's own solve ended at its cap or met negative curvature.
    """
    frozen = jax.lax.stop_gradient((inner, active.values, outer.cotangent, result))
    inner, values, cotangent, result = frozen
    active = active._replace(values=values)
    outer = outer._replace(cotangent=cotangent)
    hopeless = ~(result.info.converged & result.info.positive_definite)

    # One loop for the plain comparison (probe 0) and the repetitions that may follow:
    # zero, one or all turns, and the comparison is compiled once.
    def step(s: _Search) -> _Search:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), s.probe))
        moved = jnp.minimum(s.probe, 1)
        point = _jitter(keys[0], inner, units=4 * moved)
        values = _jitter(keys[1], active.values, units=moved)
        again = active._replace(values=values)
        comparison = _compare(problem, point, inner, again, outer, result, rtol)
        return _Search(
            probe=s.probe + 1,
            error=jnp.maximum(s.error, comparison.error),
            trustworthy=s.trustworthy & comparison.trustworthy,
            safe=_PROBE_WITHIN * comparison.rounding <= rtol,
        )

    zero = jnp.zeros((), trees.real_dtype(inner))
    search = _Search(jnp.zeros((), jnp.int32), zero, ~hopeless, hopeless)
    search, num_probes = iterate_until(
        step,
        search,
        lambda s: s.safe | ~s.trustworthy,
        max_steps=1 + _NUM_PROBES,
    )
    error = jnp.where(num_probes > 0, search.error, jnp.inf)
    return Certificate(error, search.trustworthy)


class _Search(NamedTuple):
    probe: jax.Array
    error: jax.Array  # the largest so far
    trustworthy: jax.Array  # so far
    safe: jax.Array  # rounding cannot matter: no more probes


class _Comparison(NamedTuple):
    error: jax.Array
    trustworthy: jax.Array
    rounding: jax.Array  # rounding unit times condition number, as far as seen


def _jitter(key: jax.Array, tree: Tree, units: jax.Array) -> Tree:
    """The floats of `tree` moved by up to `units` roundings at random."""
    floats, merge = trees.split_floats(tree)
    keys = jax.random.split(key, len(floats))

    def move(key: jax.Array, x: jax.Array) -> jax.Array:
        relative = (units * (float(jnp.finfo(x.dtype).eps) / 2)).astype(x.dtype)
        return x + x * relative * jax.random.uniform(key, x.shape, x.dtype, -1, 1)

    return merge([move(k, x) for k, x in zip(keys, floats, strict=True)])


def _compare(
    problem: InnerProblem,
    point: Tree,
    inner: Tree,
    active: Active,
    outer: Outer,
    result: Pullback,
    rtol: float,
) -> _Comparison:
    """Compares `result`, found at `inner`, with the implicit rule after a Newton step.

    The Newton step starts at `point`: `inner` itself, or a copy a few units away.
    """
    residual = optimality(problem, active)
    gap = residual(point, active.values)
    newton, first = _linear_solve(problem, residual, point, active, gap, False)
    better = trees.sub(point, newton)
    decreased = trees.norm(residual(better, active.values)) <= trees.norm(gap) / 2
    size = jnp.maximum(trees.norm(point), trees.norm(better))
    change = _ratio(trees.norm(newton), size)

    if outer.gradient is None:
        cotangent, direct, direct_better = outer.cotangent, None, None
    else:
        _, direct = outer.gradient(inner)
        cotangent, direct_better = outer.gradient(better)
    # From the rule's own adjoint, if it has one: what CG misses once it misses again.
    has_adjoint = not (isinstance(result.memory, tuple) and not result.memory)
    adjoint = result.memory if has_adjoint else trees.zeros_like(inner)
    apply = _transpose(problem, hvp(residual, better, active.values), inner)
    lack = trees.sub(cotangent, apply(adjoint))
    correction, second = _linear_solve(problem, residual, better, active, lack, True)
    adjoint = trees.add(adjoint, correction)
    pulled = mixed_vjp(residual, better, active.values, adjoint)
    difference = trees.add(result.cotangent, pulled)
    total = trees.norm(result.cotangent)
    if direct is not None and direct_better is not None:
        difference = trees.add(difference, trees.sub(direct, direct_better))
        total = total + trees.norm(direct)
    error = _ratio(trees.norm(difference), total)
    if outer.gradient is None:
        # How v itself would change is not known; it changes with w.
        error = jnp.maximum(error, change)

    # At the level of rounding the residual need not decrease: such a step is harmless.
    sound = (
        (decreased | (change <= rtol / 10))
        & first.converged
        & second.converged
        & first.positive_definite
        & second.positive_definite
    )
    flat = trees.norm(cotangent) == 0  # then the gradient is dF/dx, whatever w* does
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(inner))
    return _Comparison(
        error=jnp.where(flat, 0, error),
        trustworthy=flat | (sound & (_MARGIN * error <= rtol)),
        rounding=jnp.where(flat, 0, eps * second.largest / second.smallest),
    )


def _ratio(part: jax.Array, total: jax.Array) -> jax.Array:
    return part / jnp.where(total > 0, total, 1)


def _linear_solve(
    problem: InnerProblem,
    residual: Callable[[Tree, Tree], Tree],
    inner: Tree,
    active: Active,
    rhs: Tree,
    transpose: bool,
) -> tuple[Tree, LinearInfo]:
    matvec = hvp(residual, inner, active.values)
    if problem.solver.symmetric:
        return cg().solve(matvec, rhs, None, None)
    if transpose:
        matvec = _transpose(problem, matvec, inner)
    return normal_cg().solve(matvec, rhs, None, None)


def _transpose(
    problem: InnerProblem, matvec: Callable[[Tree], Tree], inner: Tree
) -> Callable[[Tree], Tree]:
    if problem.solver.symmetric:
        return matvec
    pull = jax.linear_transpose(matvec, inner)
    return lambda u: pull(u)[0]


def enforce(tree: Tree, report: Certificate, trust: Trust, rule: str) -> Tree:
    """Carries out `on_untrustworthy`: returns `tree`, with a warning, or NaN."""
    if trust.on_untrustworthy == "nan":
        # A factor, not a choice: transposed, `where(ok, x, nan)` would return zeros.
        factor = jnp.where(report.trustworthy, 1, jnp.nan)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)
    if trust.on_untrustworthy == "warn":
        jax.debug.callback(
            lambda ok, error: _warn(bool(ok), float(error), trust.rtol, rule),
            report.trustworthy,
            report.error,
        )
    return tree


def _warn(trustworthy: bool, error: float, rtol: float, rule: str) -> None:
    if trustworthy:
        return
    warnings.warn(
        f"untrustworthy gradient through an argmin ({rule} rule): estimated relative "
        f"error {error:.1e}, promised {rtol:.1e}. Solve the inner problem more "
        "accurately (max_steps, rtol of the inner solver), raise the cap of the linear "
        "solver, or use float64; value_and_hypergradient reports the residuals. "
        'on_untrustworthy="ignore" silences this, "nan" returns NaN instead.',
        stacklevel=2,
    )
