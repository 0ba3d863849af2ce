"""Kolen-Pollack learning: feedback weights are learned along with the forward ones."""

from bilevel.energy import transports
from bilevel.energy.blockwise import blockwise, derivative
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import LearningRule


def kolen_pollack(network: Feedforward, cost: Cost) -> LearningRule:
    """Kolen-Pollack learning: feedback weights are learned along with the forward ones.

    In place of W^T stands a matrix B of its own, drawn by `init`, which gets the
    gradient of W. With weight decay, of both, they become the same.

    Args:
        network: a chain of blocks.
        cost: of its outputs.

    Returns:
        A `LearningRule` whose parameters are `Aligned`. Cost: 1 g.

    Source: Kolen and Pollack 1994; Akrout et al. 2019, arXiv:1904.05391.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import linen
        >>> from bilevel import energy
        >>> network = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> rule = energy.kolen_pollack(network, energy.cross_entropy())
        >>> params = rule.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    return blockwise(
        "kolen_pollack",
        network,
        cost,
        derivative(network.activation.apply),
        transports.kolen_pollack(),
    )
