"""Any pull-back rule of the core as a learning rule."""

import jax
import jax.numpy as jnp

from bilevel.argmin import argmin
from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import Aux, LearningRule
from bilevel.energy.networks.base import EnergyNetwork, State
from bilevel.energy.relaxations.base import rms
from bilevel.hypergradients import Hypergradient
from bilevel.inner_solvers import InnerInfo, InnerSolver
from bilevel.trees import Tree

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
        `aux.converged`: the forward solve has converged, and each unit's own response
        is its state: not so where a solver went out of bounds.

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
    solve = argmin(
        lambda state, params, inputs: network.energy(params, state, inputs),
        inner_solver,
        hypergradient,
        on_untrustworthy="ignore",
    )

    def relaxed(params: Tree, inputs: jax.Array) -> tuple[State, InnerInfo]:
        start = jax.lax.stop_gradient(network.start(params, inputs))
        return solve(start, params, inputs)

    def apply(params: Tree, inputs: jax.Array) -> jax.Array:
        return network.outputs(params, relaxed(params, inputs)[0])

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        del key

        def mean_cost(params: Tree) -> tuple[jax.Array, Aux]:
            state, info = relaxed(params, inputs)
            outputs = network.outputs(params, state)
            held = jax.lax.stop_gradient((params, state))
            answer = network.respond(*held, inputs, {}, {})
            apart = rms(jax.tree.leaves(jax.tree.map(jnp.subtract, answer, held[1])))
            is_state = apart <= _APART * rms(jax.tree.leaves(held[1]))
            count = sum(leaf.size for leaf in jax.tree.leaves(state))
            aux = Aux(
                outputs=outputs,
                state=state,
                free_residual=info.residual_norm / count**0.5,
                converged=info.converged & is_state,
            )
            return jnp.mean(cost(outputs, targets)), aux

        return jax.value_and_grad(mean_cost, has_aux=True)(params)

    return LearningRule(name, network.init, apply, value_and_grad, network.project)
