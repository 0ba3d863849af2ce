"""The implicit function theorem: the solution as a differentiable function."""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from bilevel import trees
from bilevel.derivatives import hvp, linear_solve, mixed_jvp, zero_cotangent
from bilevel.hypergradients.base import INITIAL_POINT, Solved, at_solution
from bilevel.inner_problem import (
    Differentiated,
    InnerProblem,
    Parameters,
    optimality,
    perturbed,
    require_dependence,
)
from bilevel.inner_solvers import driver
from bilevel.inner_solvers.driver import InnerInfo
from bilevel.linear_solvers import default_for
from bilevel.linear_solvers.base import Matvec
from bilevel.preconditioners.carried import inverse
from bilevel.trees import Tree

SolveAt = Callable[[Solved, Tree, Matvec], Tree]
"""`(solved, rhs, matvec) -> A^-1 rhs` at a solution."""


def implicit_function(
    problem: InnerProblem,
    tangent_solve: SolveAt,
    adjoint_solve: SolveAt,
    *,
    strict: bool = False,
) -> Callable[[Tree, Parameters], tuple[Tree, InnerInfo]]:
    """The solution as a function of the parameters, by the implicit function theorem.

    Its tangent is -A^-1 (dR/dp dp), R the optimality map and A = dR/dw; the linear
    solve is `lax.custom_linear_solve`, so that both modes, their nesting and vmap
    follow from this one rule.

    Args:
        problem: the inner problem.
        tangent_solve: `(solved, rhs, matvec) -> A^-1 rhs`.
        adjoint_solve: `(solved, rhs, matvec) -> A'^-1 rhs`; `matvec` is A'.
        strict: raise where nothing that is differentiated can change the solution.
    """

    @jax.custom_jvp
    def solution(inner0: Tree, parameters: Parameters) -> tuple[Tree, InnerInfo]:
        start = problem.start(inner0, parameters)
        return driver.solve(problem.solver, problem.oracle, start, parameters)

    def rule(primals: Any, tangents: Any) -> Any:
        inner0, parameters = primals
        tangents0, tangents_parameters = tangents
        if any(not isinstance(t, SymbolicZero) for t in _leaves(tangents0)):
            raise ValueError(INITIAL_POINT.format(name="implicit"))
        inner, info = solution(inner0, parameters)
        tangents = _leaves(tangents_parameters)
        flags = [not isinstance(t, SymbolicZero) for t in tangents]
        differentiated = perturbed(parameters, flags)
        leaves = jax.tree.leaves(parameters)
        direction = [
            t
            for t, flag, x in zip(tangents, flags, leaves, strict=True)
            if flag and trees.is_float(x)
        ]
        if strict:
            require_dependence(problem, inner, differentiated)
        values = differentiated.values
        residual = optimality(problem, differentiated)
        rhs = mixed_jvp(residual, inner, values, direction)
        matvec = hvp(residual, inner, values)
        is_symmetric = problem.solver.structure != "general"
        vecmat = matvec if is_symmetric else transposed(matvec, inner)
        solved = Solved(problem, inner, differentiated)
        tangent = linear_solve(
            matvec,
            trees.tied(trees.scale(-1.0, rhs), direction),
            solve=lambda mv, b: tangent_solve(solved, b, mv),
            transpose_solve=lambda _, b: adjoint_solve(solved, b, vecmat),
            parameters=(inner, values),
        )
        return (inner, info), (tangent, jax.tree.map(zero_cotangent, info))

    solution.defjvp(rule, symbolic_zeros=True)
    return solution


def implicit_forward(
    problem: InnerProblem, inner0: Tree, differentiated: Differentiated
) -> tuple[Solved, InnerInfo]:
    """The forward pass of rules that look at the solution only: runs the solver.

    The solution carries the implicit derivative, so that a hypergradient can itself be
    differentiated, whatever its rule.
    """
    linear = default_for(problem.solver.structure)

    def plain(solved: Solved, rhs: Tree, matvec: Matvec) -> Tree:
        solved = at_solution(solved)
        precondition = inverse(problem.oracle, solved.differentiated.parameters())
        return linear.solve(matvec, rhs, None, precondition)[0]

    solution = implicit_function(problem, plain, plain)
    inner, info = solution(jax.lax.stop_gradient(inner0), differentiated.parameters())
    return Solved(problem, inner, differentiated), info


def transposed(matvec: Matvec, example: Tree) -> Matvec:
    """u -> A' u, given u -> A u."""
    transpose = jax.linear_transpose(matvec, example)
    return lambda u: transpose(u)[0]


def _leaves(tangents: Any) -> list[Any]:
    return jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
