"""A hypergradient with everything that is known of its accuracy."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import compiled, hypergradients, inner_solvers, trees
from bilevel.argument_checks import (
    batch_arrays,
    check_objective,
    check_settings,
    checked_inner,
    default_rtol,
)
from bilevel.binding import bind, bind_objective
from bilevel.hypergradients import Hypergradient, certificate
from bilevel.hypergradients.base import (
    OuterObjective,
    PullbackInfo,
    assert_pullback,
    with_state,
)
from bilevel.inner_problem import (
    Differentiated,
    InnerProblem,
    Parameters,
    require_dependence,
)
from bilevel.inner_solvers import InnerInfo, InnerSolver
from bilevel.preconditioners import carried
from bilevel.preconditioners.carried import Carried
from bilevel.problem import Batches, Problem
from bilevel.trees import Tree


class WarmStart(NamedTuple):
    """What one hypergradient leaves to the next.

    Attributes:
        rule: what the rule starts from, of any kind; None for nothing.
        preconditioner: its state; None where there is none.
        tolerance: `[]`, a relative accuracy of the solution and the adjoint that is
            enough next time, for rules that follow it; None for the solvers' own.
    """

    rule: Any = None
    preconditioner: Carried | None = None
    tolerance: jax.Array | None = None


class HypergradientResult(NamedTuple):
    """What `value_and_hypergradient` returns.

    Attributes:
        value: `[]`, F(w, x).
        gradient: a tree like the outer variable, dF(w*(x), x)/dx.
        inner: w, the solution of the inner problem.
        aux: the auxiliary output of the outer objective, or None.
        info: how far to trust it.
        warm_start: pass it to the next call: the rule starts from it, and the
            preconditioner goes on with what it knows.
    """

    value: jax.Array
    gradient: Tree
    inner: Tree
    aux: Any
    info: "HypergradientInfo"
    warm_start: WarmStart


class HypergradientInfo(NamedTuple):
    """Diagnostics of one hypergradient.

    Attributes:
        inner: of the inner solve: residual, steps, convergence, aux.
        pullback: of the rule: adjoint residual, steps, curvature, bias.
        error: estimated error relative to |dF/dx| + |J' u|; inf where none can be
            estimated, as `reason` says; None (unchecked) with `certify=False`.
        trustworthy: `error` is certified to be at most `rtol`; None (unchecked) with
            `certify=False`.
        reason: `[]` int32, the index in `hypergradients.certificate.REASONS` of the
            first test that failed, 0 if none did; None (unchecked) likewise.
    """

    inner: InnerInfo
    pullback: PullbackInfo
    error: jax.Array | None
    trustworthy: jax.Array | None
    reason: jax.Array | None


def value_and_hypergradient(
    problem: Problem,
    inner_solver: InnerSolver | None = None,
    hypergradient: Hypergradient | None = None,
    *,
    rtol: float | None = None,
    certify: bool = True,
) -> Callable[..., HypergradientResult]:
    """F(w*(x), x) and its gradient in x, with everything reported.

    Args:
        problem: the two objectives.
        inner_solver: None means `inner_solvers.newton()`.
        hypergradient: None means `hypergradients.implicit()`.
        rtol: what `trustworthy` promises; None means 1e-4 if all inner variables are
            float64, otherwise 1e-2.
        certify: estimate the error (see `hypergradients.certificate`), for one to
            three linear solves more, none if the rule's own solve already failed.
            Without it `error`, `trustworthy` and `reason` are None: unchecked.

    Returns:
        `evaluate(inner0, outer, batches=Batches(), warm_start=None, when=True)`, which
        returns a `HypergradientResult`.  `when`, possibly traced, says whether this one
        is certified, if `certify`; where it is False, `reason` is
        `hypergradients.certificate.UNCHECKED`, whatever `trustworthy` says.  The result
        can be transformed further; `jax.jacfwd` of the gradient is the outer Hessian.
        Where `problem.initial` is given, `inner0` is None.

    Raises:
        ValueError: (when traced) variables that are not floating point, objectives that
            return no scalar, or an inner objective that does not depend on the outer
            variable.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = Problem(
        ...     inner_objective=lambda w, x, batch: (w - x) ** 2,
        ...     outer_objective=lambda w, x, batch: w**2,
        ... )
        >>> out = value_and_hypergradient(problem)(0.0, 3.0)
        >>> float(out.value), float(out.gradient), bool(out.info.trustworthy)
        (9.0, 6.0, True)
    """
    solver = inner_solvers.newton() if inner_solver is None else inner_solver
    rule = hypergradients.implicit() if hypergradient is None else hypergradient
    check_settings(rtol, "ignore")

    def evaluate(
        inner0: Tree,
        outer: Tree,
        batches: Batches = Batches(),
        warm_start: WarmStart | None = None,
        when: jax.Array | bool = True,
    ) -> HypergradientResult:
        trees.require_float(outer, "outer")
        outer = trees.as_arrays(outer)
        if not jax.tree.leaves(outer):
            raise ValueError(
                "the outer variable has no leaves: nothing to differentiate."
            )
        if not isinstance(batches, Batches):
            raise ValueError(
                "batches must be a bilevel.Batches(inner=..., outer=...), got "
                f"{type(batches).__name__}. Write Batches(train, validation)."
            )
        batches = Batches(*map(batch_arrays, batches))
        inner0 = _initial(problem, inner0, outer, batches.inner)
        inner_args = (inner0, outer, batches.inner)
        check_objective(
            problem.inner_objective, inner_args, problem.inner_has_aux, "inner"
        )
        outer_args = (inner0, outer, batches.outer)
        check_objective(
            problem.outer_objective, outer_args, problem.outer_has_aux, "outer"
        )
        lower, parameters = bind(
            problem.inner_objective,
            solver,
            inner_args,
            has_aux=problem.inner_has_aux,
            functions=rule.functions,
            initial=problem.initial,
            preconditioner=problem.preconditioner,
        )
        function, of_outer = bind_objective(
            "outer_objective",
            problem.outer_objective,
            inner0,
            Parameters(outer, batches.outer, {}),
        )
        settings = _Settings(
            rule,
            problem.outer_has_aux,
            default_rtol(rtol, inner0) if certify else None,
        )
        call = compiled.program(
            functools.partial(_evaluate, lower, function, settings),
            [
                (lambda w, both: lower.objective(w, both[0]), problem.inner_has_aux),
                (lambda w, both: function(w, both[1]), problem.outer_has_aux),
            ],
            (
                "value_and_hypergradient",
                solver,
                problem.initial,
                problem.preconditioner,
                settings,
            ),
            inner0,
            (parameters, of_outer),
        )
        start = WarmStart() if warm_start is None else warm_start
        if not isinstance(start, WarmStart):
            raise ValueError(
                "warm_start must be the warm_start of an earlier result, or "
                "WarmStart(rule.init(inner)), or None for nothing to start from; got "
                f"{type(start).__name__}."
            )
        return call(inner0, (parameters, of_outer), start, jnp.asarray(when))

    return evaluate


def _initial(problem: Problem, inner0: Tree, outer: Tree, batch: Any) -> Tree:
    """The initial inner variable, from the caller or from the problem."""
    if problem.initial is None:
        return checked_inner(inner0)
    if inner0 is not None:
        raise ValueError(
            "this problem has an initial point of its own, Problem(initial=...), and "
            "another one was passed: expected None in its place, got "
            f"{jax.tree.structure(inner0)}."
        )
    return checked_inner(jax.lax.stop_gradient(problem.initial(outer, batch)))


class _Settings(NamedTuple):
    rule: Hypergradient
    has_aux: bool
    rtol: float | None  # None: certify nothing


def _evaluate(
    lower: InnerProblem,
    function: Callable[[Tree, Parameters], Any],
    settings: _Settings,
    inner0: Tree,
    parameters: tuple[Parameters, Parameters],
    warm_start: WarmStart,
    when: jax.Array,
) -> HypergradientResult:
    """One hypergradient; certified if `rtol` is given, `when` that is wanted."""
    rule, has_aux, rtol = settings
    of_inner, of_outer = parameters
    outer = of_inner.outer
    if rule.follows_tolerance:
        of_inner = of_inner._replace(tolerance=warm_start.tolerance)
    start = jax.lax.stop_gradient(lower.start(inner0, of_inner))
    of_inner = carried.before_solve(lower, start, of_inner, warm_start.preconditioner)
    differentiated = Differentiated(
        outer, lambda values: of_inner._replace(outer=values)
    )
    require_dependence(
        lower,
        lower.start(inner0, of_inner),
        differentiated,
        through_start=rule.sees_start,
    )
    solved, info = rule.forward(lower, inner0, differentiated)
    fitted, prepared = carried.at_solution(
        lower, solved.inner, of_inner, warm_start.preconditioner
    )
    if lower.preconditioner is not None:
        solved = with_state(solved, fitted.preconditioner)

    def outer_objective(unknowns: Tree, x: Tree) -> tuple[jax.Array, Any]:
        out = function(lower.restrict(unknowns), of_outer._replace(outer=x))
        return out if has_aux else (out, None)

    (value, aux), (cotangent, direct) = jax.value_and_grad(
        outer_objective, argnums=(0, 1), has_aux=True
    )(solved.inner, outer)

    def gradients(unknowns: Tree) -> tuple[Tree, Tree]:
        x = jax.lax.stop_gradient(outer)
        value = lambda z, x: outer_objective(z, x)[0]
        return jax.grad(value, argnums=(0, 1))(unknowns, x)

    told = OuterObjective(
        cotangent=cotangent,
        function=lambda unknowns, p: outer_objective(unknowns, p.outer)[0],
        gradient=gradients,
    )
    with jax.named_scope("adjoint"):
        result = rule.pullback(solved, told, warm_start.rule)
    assert_pullback(result, solved)
    report = (None, None, None)
    if rtol is not None:
        report = certificate.certify(solved, told, result, rtol, when=when)
    prepared = carried.observed(lower.preconditioner, prepared, result.pairs)
    inner = lower.restrict(solved.inner)
    info = info._replace(aux=lower.oracle.aux(inner, of_inner))
    return HypergradientResult(
        value=value,
        gradient=trees.add(direct, result.cotangent),
        inner=inner,
        aux=aux,
        info=HypergradientInfo(info, result.info, *report),
        warm_start=WarmStart(result.warm_start, prepared),
    )
