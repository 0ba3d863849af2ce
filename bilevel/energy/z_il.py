"""Zero-divergence inference learning: predictive coding that is back-propagation."""

import jax
import jax.numpy as jnp

from bilevel.energy import networks, phases
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aux, LearningRule
from bilevel.energy.networks.base import State
from bilevel.trees import Tree


def z_il(chain: Feedforward, cost: Cost) -> LearningRule:
    """Predictive coding with each layer updated as the error arrives.

    Inference takes steps of size 1 from the forward pass, and layer k is updated at
    t = L - k, when the states below it are still those of the forward pass: the
    gradient is that of back-propagation, from local quantities.

    Args:
        chain: the layers, any activation.
        cost: of the outputs.

    Returns:
        A `LearningRule`. Cost: L steps of inference, about 2 L g.

    Raises:
        ValueError: a chain without hidden layer.

    Source: Song et al. 2020, "Can the brain do backpropagation? Exact implementation
    of backpropagation in predictive coding networks", algorithm 2.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> rule = energy.z_il(chain, energy.cross_entropy())
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    network = networks.predictive(chain)
    num_layers = len(chain.blocks)

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        del key

        def total(params: Tree, state: State) -> jax.Array:
            data = phases.Data(params, inputs, targets)
            return phases.nudged_energy(network, cost, data, state)

        state = start = network.start(params, inputs)
        found = []
        for layer in reversed(range(num_layers)):
            grads, slopes = jax.grad(total, argnums=(0, 1))(params, state)
            found.append(grads[layer])
            state = [s - slope for s, slope in zip(state, slopes, strict=True)]
        outputs = network.outputs(params, start)
        grads = jax.tree.map(lambda g: g / len(inputs), found[::-1])
        return (jnp.mean(cost(outputs, targets)), Aux(outputs, start)), grads

    return LearningRule("z_il", chain.init, chain.apply, value_and_grad)
