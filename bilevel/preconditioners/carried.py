"""When a preconditioner is refreshed, and what an outer loop carries of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import Oracle
from bilevel.inner_problem import InnerProblem, Pairs, Parameters, Preconditioner
from bilevel.trees import Tree


class Carried(NamedTuple):
    """The state of a preconditioner between two hypergradients.

    Attributes:
        state: its own.
        age: `[]` int32, the solutions that it has seen.
    """

    state: Any
    age: jax.Array


def initial(preconditioner: Preconditioner | None, inner: Tree) -> Carried | None:
    """What is carried before the first solution; None for nothing.

    Args:
        preconditioner: or None.
        inner: an example of w.
    """
    state = None if preconditioner is None else preconditioner.init(inner)
    return None if state is None else Carried(state, jnp.zeros((), jnp.int32))


def before_solve(
    problem: InnerProblem, inner: Tree, parameters: Parameters, carried: Carried | None
) -> Parameters:
    """The parameters for the inner solve: with the state that is carried.

    If there is none yet, and the inner solver asks for it, the preconditioner is fitted
    where the solve starts.

    Args:
        problem: bound.
        inner: where the solve starts.
        parameters: without a preconditioner's state.
        carried: or None.
    """
    preconditioner = problem.preconditioner
    if preconditioner is None:
        return parameters
    known = carried if carried is not None else initial(preconditioner, inner)
    state = None if known is None else known.state
    if problem.solver.preconditioned:
        fit = lambda state: _refreshed(problem, inner, parameters, state)
        if carried is None:
            state = fit(state)
        else:
            state = jax.lax.cond(carried.age == 0, fit, lambda s: s, carried.state)
    return parameters._replace(preconditioner=state)


def at_solution(
    problem: InnerProblem, inner: Tree, parameters: Parameters, carried: Carried | None
) -> tuple[Parameters, Carried | None]:
    """The parameters for what is solved with H at a solution, and what is carried.

    Args:
        problem: bound.
        inner: the solution.
        parameters: as they were.
        carried: from before, or None: then the preconditioner is fitted here.
    """
    preconditioner = problem.preconditioner
    if preconditioner is None:
        return parameters, None
    fit = lambda state: _refreshed(problem, inner, parameters, state)
    known = carried if carried is not None else initial(preconditioner, inner)
    if known is None:
        return parameters._replace(preconditioner=fit(None)), None
    if carried is None or preconditioner.every == 1:
        state = fit(known.state)
    else:
        due = carried.age % preconditioner.every == 0
        state = jax.lax.cond(due, fit, lambda s: s, carried.state)
    return parameters._replace(preconditioner=state), Carried(state, known.age + 1)


def observed(
    preconditioner: Preconditioner | None, carried: Carried | None, pairs: Pairs | None
) -> Carried | None:
    """What is carried, after the preconditioner has seen the pairs of a solve."""
    if preconditioner is None or preconditioner.observe is None:
        return carried
    if carried is None or pairs is None:
        return carried
    state = preconditioner.observe(carried.state, jax.lax.stop_gradient(pairs))
    return carried._replace(state=state)


def inverse(oracle: Oracle, parameters: Parameters) -> Callable[[Tree], Tree] | None:
    """r -> about H^-1 r, or None where there is no preconditioner."""
    precondition = oracle.precondition
    if precondition is None or parameters.preconditioner is None:
        return None
    return lambda r: precondition(parameters, r)


def _refreshed(
    problem: InnerProblem, inner: Tree, parameters: Parameters, state: Any
) -> Any:
    """The new state, a constant: no derivative depends on it.

    A state with a NaN or an infinity (of a point that ran away) is not taken: it would
    spoil every solve until the next refresh.
    """
    assert problem.preconditioner is not None
    inner, parameters = _constant(inner), _constant(parameters)
    new = problem.preconditioner.refresh(problem.oracle, inner, parameters, state)
    new = _constant(new)
    if state is None:
        return new
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(new)]
    return trees.where(jnp.all(jnp.stack(finite)), new, state)


def _constant(tree: Any) -> Any:
    stop = jax.lax.stop_gradient
    return jax.tree.map(lambda x: stop(x) if trees.is_float(x) else x, tree)
