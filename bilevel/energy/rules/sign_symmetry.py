"""Sign-symmetry: errors come down through the signs of the weights."""

from bilevel.energy import transports
from bilevel.energy.blockwise import blockwise, derivative
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import LearningRule


def sign_symmetry(network: Feedforward, cost: Cost) -> LearningRule:
    """Sign-symmetry: errors come down through the signs of the weights.

    In place of W^T stands sign(W)^T times the mean of |W|.

    Args:
        network: a chain of blocks.
        cost: of its outputs.

    Returns:
        A `LearningRule`. Cost: 1 g.

    Source: Liao, Leibo and Poggio 2016, arXiv:1510.05067.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import linen
        >>> from bilevel import energy
        >>> network = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> rule = energy.sign_symmetry(network, energy.cross_entropy())
        >>> params = rule.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    return blockwise(
        "sign_symmetry",
        network,
        cost,
        derivative(network.activation.apply),
        transports.sign_symmetry(),
    )
