"""Back-propagation: the reference that the other rules are compared with."""

import jax
import jax.numpy as jnp

from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.trees import Tree


def back_propagation(network: Feedforward, cost: Cost) -> LearningRule:
    """The gradient of the mean cost, by automatic differentiation.

    Args:
        network: a chain of blocks.
        cost: of its outputs.

    Returns:
        A `LearningRule`. Cost: 1 g, the unit of the others.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> network = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> rule = energy.back_propagation(network, energy.cross_entropy())
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
        >>> aux.outputs.shape
        (3, 2)
    """

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        del key

        def loss(params: Tree) -> tuple[jax.Array, Aux]:
            outputs = network.apply(params, inputs)
            return jnp.mean(cost(outputs, targets)), Aux(outputs, unbiased=said(True))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return LearningRule("back_propagation", network.init, network.apply, value_and_grad)
