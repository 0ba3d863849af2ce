"""When a hypergradient can be trusted: one certificate for every rule.

A rule returned g at an approximate solution w.  The certificate takes one Newton step
towards the solution, w1 = w - H^-1 dG/dw, solves the adjoint equation there, and
compares g with the resulting implicit hypergradient g1.  Since the errors of g1 are of
second order, |g - g1| estimates the error of g: that of the inner solution, of the
adjoint, and of the rule (its bias) at once.
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
MARGIN = 3.0


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
        A `Certificate`.  Cost: two linear solves, three linearisations; skipped (and
        untrustworthy) if the rule's own solve ended at its cap or met negative
        curvature.
    """
    frozen = jax.lax.stop_gradient((inner, active.values, outer.cotangent, result))
    inner, values, cotangent, result = frozen
    active = active._replace(values=values)
    outer = outer._replace(cotangent=cotangent)
    hopeless = ~(result.info.converged & result.info.positive_definite)

    def give_up() -> tuple[jax.Array, jax.Array]:
        zero = jnp.zeros((), trees.real_dtype(inner))
        return jnp.full_like(zero, jnp.inf), jnp.zeros((), bool)

    def check() -> tuple[jax.Array, jax.Array]:
        return _compare(problem, inner, active, outer, result, rtol)

    return Certificate(*jax.lax.cond(hopeless, give_up, check))


def _compare(
    problem: InnerProblem,
    inner: Tree,
    active: Active,
    outer: Outer,
    result: Pullback,
    rtol: float,
) -> tuple[jax.Array, jax.Array]:
    residual = optimality(problem, active)
    gap = residual(inner, active.values)
    newton, first = _linear_solve(problem, residual, inner, active, gap, False)
    better = trees.sub(inner, newton)
    gap_norm = trees.norm(gap)
    decreased = trees.norm(residual(better, active.values)) <= gap_norm / 2
    moved = trees.norm(newton)
    size = jnp.maximum(trees.norm(inner), trees.norm(better))
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(inner))

    if outer.gradient is None:
        cotangent, direct, direct_better = outer.cotangent, None, None
    else:
        _, direct = outer.gradient(inner)
        cotangent, direct_better = outer.gradient(better)
    adjoint, second = _linear_solve(problem, residual, better, active, cotangent, True)
    reference = trees.scale(-1.0, mixed_vjp(residual, better, active.values, adjoint))
    difference = trees.sub(result.cotangent, reference)
    total = trees.norm(result.cotangent)
    if direct is not None and direct_better is not None:
        difference = trees.add(difference, trees.sub(direct, direct_better))
        total = total + trees.norm(direct)
    unseen = eps * second.largest / second.smallest
    change = jnp.where(size > 0, moved / jnp.where(size > 0, size, 1), 0)
    error = trees.norm(difference) / jnp.where(total > 0, total, 1)
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
    zero = trees.norm(cotangent) == 0
    error = jnp.where(zero, 0, jnp.maximum(error, unseen))
    trusted = jnp.where(zero, jnp.isfinite(gap_norm), sound & (MARGIN * error <= rtol))
    return error, trusted


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
        pull = jax.linear_transpose(matvec, inner)
        return normal_cg().solve(lambda u: pull(u)[0], rhs, None, None)
    return normal_cg().solve(matvec, rhs, None, None)


def enforce(tree: Tree, report: Certificate, trust: Trust, rule: str) -> Tree:
    """Carries out `on_untrustworthy`: returns `tree`, with a warning, or NaN."""
    if trust.on_untrustworthy == "nan":
        return jax.tree.map(
            lambda x: jnp.where(report.trustworthy, x, jnp.nan).astype(x.dtype), tree
        )
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
