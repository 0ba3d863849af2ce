"""Implicit differentiation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from bilevel import trees
from bilevel.derivatives import (
    hvp,
    linear_solve,
    mixed_jvp,
    mixed_vjp,
    zero_cotangent,
)
from bilevel.hypergradients import certificate, watch
from bilevel.hypergradients.base import (
    INITIAL_POINT,
    Active,
    Hypergradient,
    InnerProblem,
    Outer,
    Pullback,
    PullbackInfo,
    Theta,
    Trust,
    optimality,
    perturbed,
    require_dependence,
)
from bilevel.inner_solvers import base as driver
from bilevel.inner_solvers.base import InnerInfo
from bilevel.linear_solvers import LinearInfo, LinearSolver, cg, normal_cg
from bilevel.trees import Tree

Preconditioner = Callable[[Tree, Tree, Any], Callable[[Tree], Tree]]
"""`(inner, outer, batch) -> apply`, with `apply(r)` about H^-1 r."""


def implicit(
    linear_solver: LinearSolver | None = None,
    *,
    preconditioner: Preconditioner | None = None,
) -> Hypergradient:
    """The implicit function theorem: solve H u = v, return -J' u.

    Needs a solution that depends smoothly on x: H nonsingular there (for an argmin,
    positive definite).  It does not matter how the solution was found.

    Args:
        linear_solver: of the adjoint equation; None means `linear_solvers.cg()` where
            the inner solver's optimality map is symmetric, else `normal_cg()`.
        preconditioner: `(inner, outer, batch) -> apply`, an approximate inverse of H.

    Returns:
        A `Hypergradient`, the default of `argmin`.  It supports both modes of
        differentiation to any order.  Cost: 1 g per iteration of the linear solver (the
        gradient is linearised once) and 1.5 g for J' u; memory: a few vectors.

    What `trustworthy` promises: the relative error against the derivative at the exact
    argmin is at most `rtol`.  The errors of the inner solution, of the adjoint and of
    rounding are estimated together; see `hypergradients.certificate`.

    Source: Pedregosa 2016, arXiv:1602.02355; Blondel et al. 2022, arXiv:2105.15183.

    Example:
        >>> rule = implicit(cg(rtol=1e-9))
    """

    def solver_for(problem: InnerProblem) -> LinearSolver:
        if linear_solver is None:
            return cg() if problem.solver.symmetric else normal_cg()
        if linear_solver.symmetric_only and not problem.solver.symmetric:
            raise ValueError(
                "this linear solver needs a symmetric matrix, but the optimality map "
                "of the inner solver (w - T(w)) has none. Use "
                "implicit(linear_solvers.normal_cg()), dense(symmetric=False) or "
                "neumann, or leave the linear solver out."
            )
        return linear_solver

    def precondition(inner: Tree, theta: Theta) -> Callable[[Tree], Tree] | None:
        if preconditioner is None:
            return None
        apply = preconditioner(inner, theta.outer, theta.batch)

        def checked(r: Tree) -> Tree:
            result = apply(r)
            trees.require_like(result, r, "preconditioner(...)(r)", "r")
            return result

        return checked

    def pullback(
        problem: InnerProblem,
        inner: Tree,
        active: Active,
        saved: Any,
        outer: Outer,
        memory: Any,
    ) -> Pullback:
        del saved
        residual = optimality(problem, active)
        matvec = hvp(residual, inner, active.values)
        if not problem.solver.symmetric:
            matvec = _transposed(matvec, inner)
        initial = None if isinstance(memory, tuple) and not memory else memory
        solver = solver_for(problem)
        inverse = precondition(inner, active.build(active.values))
        adjoint, linear = _solve(
            solver,
            matvec,
            outer.cotangent,
            initial,
            inverse,
            problem.solver.symmetric,
            (inner, active.values),
        )
        pulled = mixed_vjp(residual, inner, active.values, adjoint)
        return Pullback(
            trees.scale(-1.0, pulled),
            _info(linear),
            adjoint,
            memory=adjoint,
            precondition=inverse,
            damping=solver.damping,
        )

    def attach(
        problem: InnerProblem, readout: Any, trust: Trust
    ) -> Callable[[Tree, Theta], tuple[Tree, InnerInfo]]:
        del readout
        linear = solver_for(problem)

        def watched(
            inner: Tree, active: Active, rhs: Tree, matvec: Callable, *, forward: bool
        ) -> Tree:
            """A solve whose result goes through the certificate."""
            inverse = precondition(inner, active.build(active.values))
            with jax.named_scope("adjoint"):
                solution, info = linear.solve(matvec, rhs, None, inverse)
            if trust.on_untrustworthy == "ignore":
                return solution
            if forward:
                pulled = solution
            else:
                residual = optimality(problem, active)
                pulled = mixed_vjp(residual, inner, active.values, solution)
                pulled = trees.scale(-1.0, pulled)
            result = Pullback(
                pulled,
                _info(info),
                solution,
                precondition=inverse,
                damping=linear.damping,
            )
            report = certificate.certify(
                problem, inner, active, Outer(rhs), result, trust.rtol, forward=forward
            )
            return watch.enforce(solution, report, trust, "implicit")

        strict = trust.on_untrustworthy != "ignore"
        return implicit_function(
            problem,
            partial(watched, forward=True),
            partial(watched, forward=False),
            strict=strict,
        )

    return Hypergradient(
        name="implicit",
        init=trees.zeros_like,
        forward=implicit_forward,
        pullback=pullback,
        attach=attach,
    )


def implicit_function(
    problem: InnerProblem,
    tangent_solve: Callable[[Tree, Active, Tree, Callable], Tree],
    adjoint_solve: Callable[[Tree, Active, Tree, Callable], Tree],
    *,
    strict: bool = False,
) -> Callable[[Tree, Theta], tuple[Tree, InnerInfo]]:
    """The solution as a function of theta, differentiated by the implicit theorem.

    Its tangent is -A^-1 (dR/dtheta dtheta), R the optimality map and A = dR/dw; the
    linear solve is `lax.custom_linear_solve`, so that both modes, their nesting and
    vmap follow from this one rule.

    Args:
        problem: the inner problem.
        tangent_solve: `(inner, active, rhs, matvec) -> A^-1 rhs`.
        adjoint_solve: `(inner, active, rhs, matvec) -> A'^-1 rhs`; `matvec` is A'.
        strict: raise where nothing that is differentiated can change the solution.
    """

    @jax.custom_jvp
    def solution(inner: Tree, theta: Theta) -> tuple[Tree, InnerInfo]:
        return driver.solve(problem.solver, problem.oracle, inner, theta)

    def rule(primals: Any, tangents: Any) -> Any:
        inner0, theta = primals
        tangents0, tangents_theta = tangents
        if any(not isinstance(t, SymbolicZero) for t in _leaves(tangents0)):
            raise ValueError(INITIAL_POINT.format(name="implicit"))
        inner, info = solution(inner0, theta)
        tangents = _leaves(tangents_theta)
        flags = [not isinstance(t, SymbolicZero) for t in tangents]
        active = perturbed(theta, flags)
        direction = [
            t
            for t, flag, x in zip(tangents, flags, jax.tree.leaves(theta), strict=True)
            if flag and trees.is_float(x)
        ]
        if strict:
            require_dependence(problem, inner, active)
        residual = optimality(problem, active)
        rhs = mixed_jvp(residual, inner, active.values, direction)
        matvec = hvp(residual, inner, active.values)
        vecmat = matvec if problem.solver.symmetric else _transposed(matvec, inner)
        tangent = linear_solve(
            matvec,
            trees.tied(trees.scale(-1.0, rhs), direction),
            solve=lambda mv, b: tangent_solve(inner, active, b, mv),
            transpose_solve=lambda _, b: adjoint_solve(inner, active, b, vecmat),
            parameters=(inner, active.values),
        )
        return (inner, info), (tangent, jax.tree.map(zero_cotangent, info))

    solution.defjvp(rule, symbolic_zeros=True)
    return solution


def implicit_forward(
    problem: InnerProblem, inner0: Tree, active: Active
) -> tuple[Tree, InnerInfo, None]:
    """The forward pass of pointwise rules: runs the solver.

    The solution carries the implicit derivative, so that a hypergradient can itself be
    differentiated, whatever its rule.
    """
    linear = cg() if problem.solver.symmetric else normal_cg()

    def plain(inner: Tree, active: Active, rhs: Tree, matvec: Callable) -> Tree:
        del inner, active
        return linear.solve(matvec, rhs, None, None)[0]

    solution = implicit_function(problem, plain, plain)
    inner, info = solution(jax.lax.stop_gradient(inner0), active.build(active.values))
    return inner, info, None


def _solve(
    solver: LinearSolver,
    matvec: Callable[[Tree], Tree],
    rhs: Tree,
    initial: Tree | None,
    precondition: Callable[[Tree], Tree] | None,
    symmetric: bool,
    parameters: Tree,
) -> tuple[Tree, LinearInfo]:
    """A linear solve that can itself be differentiated in both modes."""
    start = jax.lax.stop_gradient(initial)

    def solve(mv: Callable, b: Tree) -> tuple[Tree, LinearInfo]:
        return solver.solve(mv, b, start, precondition)

    def cold(mv: Callable, b: Tree) -> tuple[Tree, LinearInfo]:
        return solver.solve(mv, b, None, None)

    return linear_solve(
        matvec,
        rhs,
        solve,
        solve if symmetric and initial is None else cold,
        parameters=parameters,
        symmetric=symmetric and initial is None,
        has_aux=True,
    )


def _transposed(
    matvec: Callable[[Tree], Tree], example: Tree
) -> Callable[[Tree], Tree]:
    transpose = jax.linear_transpose(matvec, example)
    return lambda u: transpose(u)[0]


def _info(linear: LinearInfo) -> PullbackInfo:
    return PullbackInfo(
        residual_norm=linear.residual_norm,
        error=linear.error,
        num_steps=linear.num_steps,
        converged=linear.converged,
        positive_definite=linear.positive_definite,
        bias=jnp.zeros_like(linear.residual_norm),
    )


def _leaves(tangents: Any) -> list[Any]:
    return jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
