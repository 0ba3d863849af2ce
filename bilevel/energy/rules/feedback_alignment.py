"""Feedback alignment: errors come down through fixed random weights."""

from bilevel.energy import transports
from bilevel.energy.blockwise import blockwise, derivative
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import LearningRule


def feedback_alignment(network: Feedforward, cost: Cost) -> LearningRule:
    """Feedback alignment: errors come down through fixed random weights.

    In place of the transpose of a block the error goes through that of a block with
    random parameters, drawn once by `init` as the block's own are. The forward weights
    come to align with them.

    Args:
        network: a chain of blocks.
        cost: of its outputs.

    Returns:
        A `LearningRule` whose parameters are `Aligned`. Cost: 1 g.

    Source: Lillicrap et al. 2016, arXiv:1411.0247.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import linen
        >>> from bilevel import energy
        >>> network = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> rule = energy.feedback_alignment(network, energy.cross_entropy())
        >>> params = rule.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    return blockwise(
        "feedback_alignment",
        network,
        cost,
        derivative(network.activation.apply),
        transports.fixed_feedback(),
    )
