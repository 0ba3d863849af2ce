"""The argmin as a differentiable function."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from bilevel import compiled, hypergradients, inner_solvers, trees
from bilevel.argument_checks import (
    batch_arrays,
    check_objective,
    check_settings,
    checked_inner,
    default_rtol,
)
from bilevel.binding import bind, bind_objective
from bilevel.hypergradients import Hypergradient, watch
from bilevel.hypergradients.base import Trust
from bilevel.inner_problem import Parameters, Preconditioner
from bilevel.inner_solvers import InnerInfo, InnerSolver
from bilevel.preconditioners import carried
from bilevel.problem import Objective
from bilevel.trees import Tree

Solve = Callable[..., tuple[Tree, InnerInfo]]
"""`solve(inner0, outer, batch=None) -> (inner, InnerInfo)`."""


def argmin(
    objective: Objective,
    inner_solver: InnerSolver | None = None,
    hypergradient: Hypergradient | None = None,
    *,
    has_aux: bool = False,
    rtol: float | None = None,
    on_untrustworthy: Literal["warn", "nan", "ignore"] = "warn",
    outer_objective: Objective | None = None,
    preconditioner: Preconditioner | None = None,
) -> Solve:
    """w*(x) = argmin over w of G(w, x, batch) as an ordinary differentiable function.

    The result may be used in any JAX program: `jit`, `grad`, `vmap`, in a Flax model,
    in another argmin.  Gradients flow to the outer variable, to the floating-point
    leaves of the batch, and to traced values that the objective closes over.  Which
    transformations a rule supports: examples/guide/rules.md.

    Args:
        objective: G, `(inner, outer, batch) -> scalar`, or `(scalar, aux)`.
        inner_solver: None means `inner_solvers.newton()`.
        hypergradient: None means `hypergradients.implicit()`.
        has_aux: G returns auxiliary output; it comes back in `info.aux`, evaluated at
            the solution and differentiable.
        rtol: the relative error of a gradient beyond which it is untrustworthy; None
            means 1e-4 if all inner variables are float64, otherwise 1e-2.
        on_untrustworthy: what to do where the certificate of a gradient fails, since
            `jax.grad` returns nothing but the gradient: "warn" at run time, return
            "nan", or "ignore" (which also saves the two linear solves of the
            certificate).  The error is relative to |J' u| here; dF/dx is not known.
        outer_objective: F, `(inner, outer, batch) -> scalar`, for rules that nudge with
            it in full.
        preconditioner: an approximate inverse of the Hessian, for every solve with it:
            Newton's, the adjoint one, and those of the certificate.

    Returns:
        `solve(inner0, outer, batch=None) -> (inner, info)`; `info` is an `InnerInfo`.
        With default settings the gradient's relative error is at most 1e-4 in float64
        up to a Hessian condition number of 1e4.

    Raises:
        ValueError: (when `solve` is traced) inner variables that are not floating
            point, an objective that returns no scalar, a rule that does not go with the
            solver, a derivative with respect to the initial point by a pointwise rule.

    Source: Blondel et al. 2022, arXiv:2105.15183, for the implicit rule.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> solve = argmin(lambda w, x, batch: jnp.sum((w - x**2) ** 2))
        >>> float(jax.grad(lambda x: solve(0.0, x)[0])(3.0))
        6.0
    """
    solver = inner_solvers.newton() if inner_solver is None else inner_solver
    rule = hypergradients.implicit() if hypergradient is None else hypergradient
    check_settings(rtol, on_untrustworthy)

    def solve(inner0: Tree, outer: Tree, batch: Any = None) -> tuple[Tree, InnerInfo]:
        inner0 = checked_inner(inner0)
        outer, batch = trees.as_arrays(outer), batch_arrays(batch)
        arguments = (inner0, outer, batch)
        check_objective(objective, arguments, has_aux, "inner")
        problem, parameters = bind(
            objective,
            solver,
            arguments,
            has_aux=has_aux,
            functions=rule.functions,
            preconditioner=preconditioner,
        )
        functions, function = [(problem.objective, has_aux)], None
        if outer_objective is not None:
            check_objective(outer_objective, arguments, False, "outer")
            function, parameters = bind_objective(
                "outer_objective", outer_objective, inner0, parameters
            )
            functions.append((function, False))
        trust = Trust(default_rtol(rtol, inner0), on_untrustworthy, watch.caller())

        def program(inner0: Tree, parameters: Parameters) -> tuple[Tree, InnerInfo]:
            start = jax.lax.stop_gradient(inner0)
            parameters = carried.before_solve(problem, start, parameters, None)
            solution = rule.attach(rule, problem, function, trust)
            unknowns, info = solution(inner0, parameters)
            inner = problem.restrict(unknowns)
            return inner, info._replace(aux=problem.oracle.aux(inner, parameters))

        settings = ("argmin", solver, rule, tuple(trust), preconditioner)
        call = compiled.program(program, functions, settings, inner0, parameters)
        return call(inner0, parameters)

    return solve
