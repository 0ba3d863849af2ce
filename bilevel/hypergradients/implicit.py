"""Implicit differentiation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import hvp, linear_solve, mixed_vjp
from bilevel.hypergradients import certificate, watch
from bilevel.hypergradients.base import (
    OuterObjective,
    Pullback,
    PullbackInfo,
    Solved,
    Trust,
    at_solution,
)
from bilevel.hypergradients.implicit_function import implicit_function, transposed
from bilevel.hypergradients.rule import Hypergradient
from bilevel.inner_problem import InnerProblem, Parameters, optimality
from bilevel.inner_solvers.driver import InnerInfo
from bilevel.linear_solvers import LinearInfo, LinearSolver, default_for
from bilevel.linear_solvers.base import Matvec, Solve, require_structure
from bilevel.preconditioners.carried import inverse
from bilevel.trees import Tree


def implicit(linear_solver: LinearSolver | None = None) -> Hypergradient:
    """The implicit function theorem: solve H u = v, return -J' u.

    Needs a solution that depends smoothly on x: H nonsingular there (for an argmin,
    positive definite).  It does not matter how the solution was found.

    Args:
        linear_solver: of the adjoint equation; None means the one that goes with the
            structure of the inner solver, `linear_solvers.default_for(structure)`:
            `cg()` for a minimum, else `normal_cg()`.  It is given the preconditioner of
            the problem, if there is one.

    Returns:
        A `Hypergradient`, the default of `argmin`.  It supports both modes of
        differentiation to any order.  Cost: 1 g per iteration of the linear solver (the
        gradient is linearised once) and 1.5 g for J' u; memory: a few vectors.

    What `trustworthy` promises: the relative error against the derivative at the exact
    argmin is at most `rtol`.  The errors of the inner solution, of the adjoint and of
    rounding are estimated together; see `hypergradients.certificate`.

    Source: Pedregosa 2016, arXiv:1602.02355; Blondel et al. 2022, arXiv:2105.15183.

    Example:
        >>> from bilevel import linear_solvers
        >>> rule = implicit(linear_solvers.cg(rtol=1e-9))
    """
    return Hypergradient(
        name="implicit",
        pullback=partial(_pullback, linear_solver),
        attach=partial(_attach, linear_solver),
        init=trees.zeros_like,
        follows_tolerance=True,
    )


def _solver_for(given: LinearSolver | None, problem: InnerProblem) -> LinearSolver:
    structure = problem.solver.structure
    if given is None:
        return default_for(structure)
    require_structure(given, structure)
    return given


def _adapted(
    solver: LinearSolver, problem: InnerProblem, enough: jax.Array | None
) -> Solve:
    """The solver's solve, with pairs where the preconditioner learns from them.

    Args:
        solver: of the adjoint equation.
        problem: the inner problem.
        enough: the accuracy that is enough, or None.
    """
    preconditioner = problem.preconditioner
    if preconditioner is None or preconditioner.num_pairs == 0:
        return solver.adapted(0, enough) if solver.adapted else solver.solve
    if solver.adapted is None:
        raise ValueError(
            f"the preconditioner {preconditioner.name!r} learns from the directions of "
            "the adjoint solve, and this linear solver records none. Use "
            "linear_solvers.cg(), or another preconditioner."
        )
    return solver.adapted(preconditioner.num_pairs, enough)


def _pullback(
    linear_solver: LinearSolver | None,
    solved: Solved,
    outer_objective: OuterObjective,
    warm_start: Any,
) -> Pullback:
    problem, inner, values = solved.problem, solved.inner, solved.differentiated.values
    solver = _solver_for(linear_solver, problem)
    residual = optimality(problem, solved.differentiated)
    matvec = hvp(residual, inner, values)
    is_symmetric = problem.solver.structure != "general"
    if not is_symmetric:
        matvec = transposed(matvec, inner)
    parameters = solved.differentiated.parameters()
    precondition = inverse(problem.oracle, parameters)
    call = _adapted(solver, problem, parameters.tolerance)
    start = jax.lax.stop_gradient(warm_start)

    def solve(mv: Matvec, b: Tree) -> tuple[Tree, LinearInfo]:
        return call(mv, b, start, precondition)

    def cold(mv: Matvec, b: Tree) -> tuple[Tree, LinearInfo]:
        return call(mv, b)

    # A solve that can itself be differentiated in both modes.
    one_solve = is_symmetric and start is None
    adjoint, info = linear_solve(
        matvec,
        outer_objective.cotangent,
        solve,
        solve if one_solve else cold,
        parameters=(inner, values),
        symmetric=one_solve,
        has_aux=True,
    )
    return Pullback(
        trees.scale(-1.0, mixed_vjp(residual, inner, values, adjoint)),
        _info(info),
        adjoint,
        warm_start=adjoint,
        pairs=info.pairs,
        damping=solver.damping,
    )


def _attach(
    linear_solver: LinearSolver | None,
    rule: Hypergradient,
    problem: InnerProblem,
    function: Any,
    trust: Trust,
) -> Callable[[Tree, Parameters], tuple[Tree, InnerInfo]]:
    """The solution as an implicit function, each linear solve of it watched."""
    del function
    solver = _solver_for(linear_solver, problem)
    is_watched = trust.on_untrustworthy != "ignore"

    def solve(solved: Solved, rhs: Tree, matvec: Matvec, *, forward: bool) -> Tree:
        solved = at_solution(solved)
        precondition = inverse(problem.oracle, solved.differentiated.parameters())
        with jax.named_scope("adjoint"):
            solution, info = solver.solve(matvec, rhs, None, precondition)
        if not is_watched:
            return solution
        if forward:
            pulled = solution
        else:
            residual = optimality(problem, solved.differentiated)
            values = solved.differentiated.values
            pulled = mixed_vjp(residual, solved.inner, values, solution)
            pulled = trees.scale(-1.0, pulled)
        result = Pullback(
            pulled,
            _info(info),
            solution,
            damping=solver.damping,
        )
        report = certificate.certify(
            solved, OuterObjective(rhs), result, trust.rtol, forward=forward
        )
        return watch.enforce(solution, report, trust, rule.name)

    return implicit_function(
        problem,
        partial(solve, forward=True),
        partial(solve, forward=False),
        strict=is_watched,
    )


def _info(linear: LinearInfo) -> PullbackInfo:
    return PullbackInfo(
        relative_residual=linear.relative_residual,
        error=linear.error,
        num_steps=linear.num_steps,
        converged=linear.converged,
        positive_definite=linear.positive_definite,
        bias=jnp.zeros_like(linear.relative_residual),
    )
