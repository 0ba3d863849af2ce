"""Incremental predictive coding: parameters move at every step of inference."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import iteration, trees
from bilevel.energy import networks, phases
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.energy.networks.base import State
from bilevel.energy.relaxations.base import rms
from bilevel.trees import Tree


def incremental_predictive_coding(
    chain: Feedforward,
    cost: Cost,
    *,
    rate: float = 1e-2,
    num_steps: int = 8,
    step_size: float = 0.5,
) -> LearningRule:
    """Descends the prediction errors in states and parameters at once.

        s <- s - step_size dE/ds,    params <- params - rate dE/dparams / B

    at the same time, `num_steps` times, E as in `predictive_coding` with beta 1. The
    gradient that is returned is the way the parameters went, over -rate: with
    `optax.sgd(rate)` training is the published algorithm, with another optimiser its
    steps are what the optimiser makes of that way.

    Args:
        chain: the layers, any activation.
        cost: of the outputs.
        rate: of the parameters during inference; the batch's mean gradient.
        num_steps: of inference.
        step_size: of the states.

    Returns:
        A `LearningRule`. Inference does not settle, nor is it meant to: `aux.converged`
        says that the energy was lower at the last step than at the first. It is not
        where `step_size` is too large for the weights. Cost: 1 g and 2 for each step.

    Raises:
        ValueError: a rate, number or size that is not positive.

    Source: Salvatori et al. 2022, arXiv:2212.00720, algorithm 1.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> rule = energy.incremental_predictive_coding(chain, energy.cross_entropy())
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    if not (rate > 0 and step_size > 0 and num_steps >= 1):
        raise ValueError(
            "incremental_predictive_coding: rate, step_size and num_steps must be "
            f"positive, got {rate}, {step_size}, {num_steps}."
        )
    network = networks.predictive(chain)

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        del key

        def total(params: Tree, state: State) -> jax.Array:
            data = phases.Data(params, inputs, targets)
            return phases.nudged_energy(network, cost, data, state)

        def step(carry: Any) -> Any:
            moving, way, state, _ = carry
            energy, (grads, slopes) = descent(moving, state)
            grads = trees.scale(1 / len(inputs), grads)
            new = (
                trees.axpy(-rate, grads, moving),
                trees.add(way, grads),
                trees.axpy(-step_size, slopes, state),
            )
            return *new, (energy, rms(jax.tree.leaves(slopes)))

        descent = jax.value_and_grad(total, argnums=(0, 1))
        start = network.start(params, inputs)
        outputs = network.outputs(params, start)
        value = jnp.mean(cost(outputs, targets))
        none = (jnp.zeros_like(value), rms(jax.tree.leaves(trees.zeros_like(start))))
        first = (params, trees.zeros_like(params), start, none)
        moved, way, state, last = iteration.iterate(step, first, num_steps=num_steps)
        aux = Aux(
            outputs=outputs,
            state=start,
            nudged_residual=last[1],
            displacement=rms(jax.tree.leaves(trees.sub(state, start))),
            # All energy is the cost's at first: the start is the forward pass.
            converged=total(moved, state) <= len(inputs) * value,
            unbiased=said(False),
        )
        return (value, aux), way

    return LearningRule(
        "incremental_predictive_coding", chain.init, chain.apply, value_and_grad
    )
