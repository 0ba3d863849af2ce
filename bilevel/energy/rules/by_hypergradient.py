"""Any pull-back rule of the core as a learning rule."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel.argmin import argmin
from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import Aux, LearningRule
from bilevel.energy.networks.base import EnergyNetwork, State
from bilevel.energy.relaxations.base import rms
from bilevel.hypergradients import Hypergradient
from bilevel.inner_solvers import InnerSolver
from bilevel.problem import Batches, Problem
from bilevel.trees import Tree
from bilevel.value_and_hypergradient import value_and_hypergradient

_APART = 1e-2  # of the state; out of bounds it is of the order of 1


def by_hypergradient(
    name: str,
    network: EnergyNetwork,
    cost: Cost,
    inner_solver: InnerSolver,
    hypergradient: Hypergradient,
) -> LearningRule:
    """Differentiates the cost through the argmin of the energy.

    Args:
        name: of the rule.
        network: with the energy.
        cost: of its outputs.
        inner_solver: `state_solver(network)`; any other of the core's where no unit has
            bounds, which the energy does not know of (identity, leaky_relu, tanh near
            its middle; relu and hard_sigmoid have some).
        hypergradient: the pull-back: implicit, unrolled, truncated, one_step, nudged.

    Returns:
        A `LearningRule`; cost and accuracy are those of the hypergradient.
        `aux.converged`: the forward solve has converged, and the adjoint's, where the
        rule has one; and each unit's own response is its state: not so where a solver
        went out of bounds.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy, hypergradients
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> network = energy.networks.hopfield(chain)
        >>> rule = energy.by_hypergradient(
        ...     "implicit",
        ...     network,
        ...     energy.squared_error(),
        ...     energy.state_solver(network),
        ...     hypergradients.implicit(),
        ... )
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    energy = lambda state, params, inputs: network.energy(params, state, inputs)
    solve = argmin(energy, inner_solver, hypergradient, on_untrustworthy="ignore")

    def start(params: Tree, inputs: jax.Array) -> State:
        return jax.lax.stop_gradient(network.start(params, inputs))

    def apply(params: Tree, inputs: jax.Array) -> jax.Array:
        state, _ = solve(start(params, inputs), params, inputs)
        return network.outputs(params, state)

    def mean_cost(state: State, params: Tree, targets: jax.Array) -> Any:
        outputs = network.outputs(params, state)
        return jnp.mean(cost(outputs, targets)), outputs

    evaluate = value_and_hypergradient(
        Problem(energy, mean_cost, outer_has_aux=True),
        inner_solver,
        hypergradient,
        certify=False,
    )

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        del key
        found = evaluate(start(params, inputs), params, Batches(inputs, targets))
        state, info = found.inner, found.info
        # A NaN ends the solver before its state has settled, or seen the NaN.
        is_lost = jnp.isnan(info.inner.residual_norm)
        lost = lambda x: jnp.where(is_lost, jnp.nan, x).astype(x.dtype)
        answer = network.respond(params, state, inputs, {}, {})
        apart = rms(jax.tree.leaves(jax.tree.map(jnp.subtract, answer, state)))
        is_state = apart <= _APART * rms(jax.tree.leaves(state))
        is_solved = info.inner.converged & is_state
        if info.pullback.converged is not None:  # a rule that solves an equation
            is_solved &= info.pullback.converged
        count = sum(leaf.size for leaf in jax.tree.leaves(state))
        aux = Aux(
            outputs=lost(found.aux),
            state=state,
            free_residual=info.inner.residual_norm / count**0.5,
            converged=is_solved,
            free_steps=info.inner.num_steps,
            nudged_steps=info.pullback.num_steps,
        )
        return (lost(found.value), aux), found.gradient

    return LearningRule(name, network.init, apply, value_and_grad, network.project)
