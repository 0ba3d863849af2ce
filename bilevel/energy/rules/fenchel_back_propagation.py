"""Fenchel back-propagation: targets in place of errors, a beta for every layer."""

from collections.abc import Sequence

import jax

from bilevel.energy import transports
from bilevel.energy.blockwise import Pull, blockwise
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import LearningRule
from bilevel.energy.nudges import check_beta


def fenchel_back_propagation(
    network: Feedforward, cost: Cost, *, betas: float | Sequence[float] = 0.1
) -> LearningRule:
    """One backward sweep of targets t_k, each layer with a beta of its own.

    With the states s_k of the forward pass and s_L - t_L = beta_L dC/da_L at the top,

        t_k = f(a_k + (beta_k / beta_{k+1}) W_{k+1}^T (t_{k+1} - s_{k+1}))
        gradient of block k: that of <block_k(s_{k-1}), s_k - t_k> / beta_k

    For beta -> 0 it is back-propagation, f' replaced by a finite difference with the
    step beta_k times the error. The error of the gradient is of first order in a common
    factor of the betas; where f is piecewise linear it is exact as long as no unit
    crosses a kink. With equal betas it is `dual_propagation` with alpha = 0.

    Args:
        network: a chain of blocks.
        cost: of its outputs.
        betas: nudge of each *sample's* cost, one for all layers, or one for each hidden
            layer from the inputs up. The output has none: it is linear, and beta_L
            cancels.

    Returns:
        A `LearningRule`. Cost: 1 g. No forward mode and no second derivatives. Rounding
        is of the order eps |a| / (beta |q|), q the error that comes down: bfloat16
        needs betas near 1.

    Raises:
        ValueError: a beta that is not positive and finite, or not as many of them as
            there are hidden layers.

    Source: Zach 2021, arXiv:2105.07231.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import linen
        >>> from bilevel import energy
        >>> network = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> rule = fenchel_back_propagation(network, energy.cross_entropy(), betas=[1])
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    name = "fenchel_back_propagation"
    num_hidden = len(network.blocks) - 1
    is_one = not isinstance(betas, Sequence)
    given = [betas] if is_one else list(betas)
    for beta in given:
        check_beta(name, beta)
    steps = given * num_hidden if is_one else given
    if len(steps) != num_hidden:
        raise ValueError(
            f"{name}: expected one beta for all or one for each of the {num_hidden} "
            f"hidden layers, got {len(steps)}."
        )
    f = network.activation.apply

    def pull_with(beta: float) -> Pull:
        def pull(a: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = f(a)
            return (state - f(a - beta * q)) / beta, state

        return pull

    pulls = [pull_with(beta) for beta in steps]
    return blockwise(name, network, cost, pulls, transports.transpose(), affine=True)
