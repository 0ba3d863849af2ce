"""Dual propagation: every unit has two states, and their difference is the error."""

import jax

from bilevel.energy import transports
from bilevel.energy.blockwise import blockwise
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import LearningRule
from bilevel.energy.nudges import check_beta


def dual_propagation(
    network: Feedforward,
    cost: Cost,
    *,
    alpha: float = 0.5,
    beta: float = 0.1,
    original: bool = False,
    transport: transports.Transport | None = None,
) -> LearningRule:
    """One backward sweep of dual propagation, as a vector-Jacobian product per block.

    Every unit of layer k is a dyad: with the feedback r_k = W_{k+1}^T delta_{k+1},

        s+ = f(a + (1 - alpha) r),   s- = f(a - alpha r)       (DP-transpose)
        delta = s+ - s-,             sbar = alpha s+ + (1 - alpha) s-

    from delta_L = -beta dC/da_L at the top; the gradient of block k is that of
    -<block_k(sbar_{k-1}), delta_k> / beta. For beta -> 0 it is back-propagation: f' is
    replaced by a finite difference whose step is the error itself. The error of the
    gradient is O(beta), O(beta^2) at alpha = 1/2; where f is piecewise linear it is
    exact as long as no unit crosses a kink. The first paper's output for squared error,
    s+ = (a + alpha beta y) / (1 + alpha beta), s- = (a - (1 - alpha) beta y) / (1 - (1
    - alpha) beta), is the same with beta / ((1 + alpha beta) (1 - (1 - alpha) beta)).

    Args:
        network: a chain of blocks.
        cost: of its outputs.
        alpha: in [0, 1], which of the two states is nearer to the forward state.
        beta: nudge of each *sample's* cost: a cost that is a mean over B samples, as in
            some published code, has beta = 1 / B.
        original: s+ = f(a + alpha r), s- = f(a - (1 - alpha) r), the rule of the first
            paper; the same at alpha = 1/2, otherwise feedback leaks into sbar at first
            order. The second paper's DP-transpose is the default.
        transport: what carries delta down (see `transports`); default the blocks' own
            transposes.

    Returns:
        A `LearningRule`. Cost: that of back-propagation and one more activation. No
        forward mode and no second derivatives. Rounding is of the order
        eps |a| / (beta |r|): bfloat16 needs a beta near 1.

    Raises:
        ValueError: alpha or beta out of range; when it is traced, a block that is
            neither affine nor pooling.

    Source: Hoier, Staudt and Zach 2023, arXiv:2302.01228 (original); Hoier and Zach
    2024, arXiv:2402.08573 (DP-transpose).

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import linen
        >>> from bilevel import energy
        >>> network = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> rule = energy.dual_propagation(network, energy.cross_entropy(), beta=0.1)
        >>> params = rule.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"dual_propagation: alpha must lie in [0, 1], got {alpha}.")
    check_beta("dual_propagation", beta)
    f = network.activation.apply
    up, down = (alpha, 1 - alpha) if original else (1 - alpha, alpha)

    def pull(a: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Cotangents are -delta: r = -q, and the cotangent of a is s- - s+.
        plus, minus = f(a - up * q), f(a + down * q)
        if alpha in (0, 1) and not original:  # one of the two is f(a), which is there
            return minus - plus, f(a)
        return minus - plus, alpha * plus + (1 - alpha) * minus

    return blockwise(
        "dual_propagation",
        network,
        cost,
        pull,
        transport or transports.transpose(),
        scale=beta,
        affine=True,
    )
