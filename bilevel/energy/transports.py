"""What carries an error down through a block, in place of the block's transpose.

Any rule that goes backwards block by block takes one: with dual propagation,
`kolen_pollack()` makes KP-DP.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.trees import Tree


class Transport(NamedTuple):
    """A block whose transpose stands in for that of the block itself.

    Attributes:
        weights: `(params, feedback) -> params` of the block that is transposed.
        has_feedback: there are feedback weights, initialised as the blocks are.
        is_learned: feedback gets the gradient of the block's own parameters.
        is_exact: it is the block's own transpose; None: nobody has looked.
    """

    weights: Callable[[Tree, Tree], Tree]
    has_feedback: bool = False
    is_learned: bool = False
    is_exact: bool | None = None


def transpose() -> Transport:
    """The blocks' own transposes, as in back-propagation."""
    return Transport(lambda params, feedback: params, is_exact=True)


def fixed_feedback() -> Transport:
    """Random weights that stay as they are (Lillicrap et al. 2016, arXiv:1411.0247)."""
    return Transport(
        lambda params, feedback: feedback, has_feedback=True, is_exact=False
    )


def kolen_pollack() -> Transport:
    """Random weights that get the gradient of the block's own.

    With the same weight decay the two become the transposes of each other: under SGD
    W_t - B_t = (1 - learning rate * decay)^t (W_0 - B_0).

    Source: Kolen and Pollack 1994; Akrout et al. 2019, arXiv:1904.05391.
    """
    return Transport(
        lambda params, feedback: feedback,
        has_feedback=True,
        is_learned=True,
        is_exact=False,
    )


def sign_symmetry() -> Transport:
    """The signs of the block's own weights, times their mean size.

    Source: Liao, Leibo and Poggio 2016, arXiv:1510.05067.
    """

    def weights(params: Tree, feedback: Tree) -> Tree:
        del feedback
        return jax.tree.map(lambda w: jnp.sign(w) * jnp.mean(jnp.abs(w)), params)

    return Transport(weights, is_exact=False)
