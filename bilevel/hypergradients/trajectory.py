"""What rules that follow the way of the inner solver share: its steps as a program."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from bilevel.derivatives import symmetric_gradient
from bilevel.hypergradients.attach import by_program
from bilevel.hypergradients.base import (
    OuterObjective,
    Pullback,
    Solved,
    Trust,
    plain_info,
)
from bilevel.hypergradients.rule import Hypergradient
from bilevel.inner_problem import Differentiated, InnerProblem, Parameters
from bilevel.inner_solvers import driver
from bilevel.inner_solvers.driver import InnerInfo
from bilevel.iteration import Rematerialize
from bilevel.trees import Tree

Program: TypeAlias = Callable[[InnerProblem, Tree, Parameters], tuple[Tree, InnerInfo]]
"""`(problem, inner0, parameters) -> (inner, info)`, the steps to be differentiated."""


def check_rematerialize(name: str, rematerialize: str) -> None:
    """Raises `ValueError` for an unknown memory mode."""
    if rematerialize not in ("none", "step", "segments"):
        raise ValueError(
            f'{name}: rematerialize must be "none", "step" or "segments", got '
            f"{rematerialize!r}."
        )


@jax.named_scope("inner_solve")  # the names of a profile
def run_steps(
    problem: InnerProblem,
    inner0: Tree,
    parameters: Parameters,
    *,
    num_steps: int,
    detached_steps: int = 0,
    rematerialize: Rematerialize = "none",
    mixed_mode: bool = False,
    reverse: bool = True,
) -> tuple[Tree, InnerInfo]:
    """Exactly `num_steps` differentiable steps, after `detached_steps` that are not."""
    solver, oracle = problem.solver, problem.oracle
    if reverse and not solver.reverse_differentiable:
        raise ValueError(
            "the steps of this inner solver contain loops whose length depends on "
            "values (a line search, CG), which reverse mode cannot pass. Use "
            "hypergradients.implicit(), or unroll inner_solvers.gradient_descent; "
            'unrolled(mode="forward") works with every solver.'
        )
    if mixed_mode:
        oracle = oracle._replace(
            gradient=symmetric_gradient(oracle.value),
            value_and_gradient=lambda w, t: (
                jax.lax.stop_gradient(oracle.value(w, t)),
                symmetric_gradient(oracle.value)(w, t),
            ),
        )
    start = problem.start(inner0, parameters)
    carry = driver.start(solver, oracle, start, parameters)
    if detached_steps:
        frozen = jax.lax.stop_gradient((carry, parameters))
        carry = driver.trajectory(
            solver, oracle, frozen[0], frozen[1], num_steps=detached_steps
        )
        carry = jax.lax.stop_gradient(carry)
    carry = driver.trajectory(
        solver,
        oracle,
        carry,
        parameters,
        num_steps=num_steps,
        rematerialize=rematerialize,
    )
    info = driver.report(
        solver,
        oracle,
        *jax.lax.stop_gradient((carry, parameters)),
        detached_steps + num_steps,
    )
    return carry.inner, info


def forward_by_vjp(
    run: Program, problem: InnerProblem, inner0: Tree, differentiated: Differentiated
) -> tuple[Solved, InnerInfo]:
    """Runs the program, and keeps its transposed derivative for the pull-back."""

    def program(values: Tree) -> tuple[Tree, InnerInfo]:
        return run(problem, inner0, differentiated.build(values))

    values = differentiated.values
    if not jax.tree.leaves(values):  # nothing asks for a derivative
        inner, info = program(values)
        return Solved(problem, inner, differentiated), info
    inner, pull, info = jax.vjp(program, values, has_aux=True)
    return Solved(problem, inner, differentiated, pull), info


def pullback_by_vjp(
    solved: Solved, outer_objective: OuterObjective, warm_start: Any
) -> Pullback:
    """The transposed derivative that `forward_by_vjp` kept."""
    del warm_start
    return Pullback(solved.residuals(outer_objective.cotangent)[0], plain_info())


def attach_program(
    run: Program,
    rule: Hypergradient,
    problem: InnerProblem,
    function: Any,
    trust: Trust,
) -> Callable[[Tree, Parameters], tuple[Tree, InnerInfo]]:
    """The program itself, differentiated by JAX."""
    del function
    return by_program(lambda w, p: run(problem, w, p), trust, rule.name)
