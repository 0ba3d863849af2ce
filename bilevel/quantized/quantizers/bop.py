"""Bop: binary weights without latent ones; a mean gradient flips them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import number_formats
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.quantizer import Quantizer
from bilevel.trees import Tree


def bop() -> Quantizer:
    """Weights that are -1 or 1 themselves; `bop_flips` moves them.

    Returns:
        A `Quantizer` that starts at the signs of given weights and passes them on, with
        their plain gradient.

    Source: Helwegen et al. 2019, arXiv:1906.02107.

    Example:
        >>> bop().start(jnp.array([0.3, -0.1]), None).tolist()
        [1.0, -1.0]
    """
    sign = number_formats.binary()
    made = elementwise(
        "bop",
        sign,
        lambda u, at: u,
        None,
        start=lambda weights, key: sign.round(weights),
    )
    return made_by(made, bop)


class Flips(NamedTuple):
    """The state of `bop_flips`.

    Attributes:
        mean: m, of gradients, in the tree of the weights.
    """

    mean: Tree


def bop_flips(
    adaptivity: float = 1e-4, threshold: float = 1e-8
) -> optax.GradientTransformation:
    """m <- m + gamma (g - m); w <- -w where w m > threshold.

    The mean gradient has the sign of the weight, and is large: it says that the weight
    should be the other. Learning rates and momenta have no meaning for such weights.

    Args:
        adaptivity: gamma, published 1e-4.
        threshold: published 1e-8; it is absolute, and gradients of a mean over a batch
            are small.

    Returns:
        An optax transformation whose updates are 0 or -2 w, to be applied as they are;
        it needs the params in `update`. With others: `optax.partition` by
        `quantized.labels`.

    Raises:
        ValueError: adaptivity out of (0, 1], a negative threshold.

    Source: Helwegen et al. 2019, arXiv:1906.02107, algorithm 1.

    Example:
        >>> flips = bop_flips(1.0, 0.5)
        >>> w = jnp.array([1.0, -1.0, 1.0])
        >>> flips.update(jnp.array([0.7, 0.7, 0.2]), flips.init(w), w)[0].tolist()
        [-2.0, 0.0, 0.0]
    """
    if not 0 < adaptivity <= 1:
        raise ValueError(f"bop_flips: adaptivity must lie in (0, 1], got {adaptivity}.")
    if not threshold >= 0:
        raise ValueError(f"bop_flips: threshold must not be negative, got {threshold}.")

    def init(params: Tree) -> Flips:
        # A mean over many steps stalls in narrow floats.
        wide = lambda w: jnp.promote_types(w.dtype, jnp.float32)
        return Flips(jax.tree.map(lambda w: jnp.zeros(w.shape, wide(w)), params))

    def update(
        updates: Tree, state: Any, params: Tree | None = None
    ) -> tuple[Tree, Flips]:
        if params is None:
            raise ValueError(
                "bop_flips needs the weights: call update(grads, state, params)."
            )
        mean = jax.tree.map(lambda m, g: m + adaptivity * (g - m), state.mean, updates)
        flips = jax.tree.map(
            lambda w, m: jnp.where(w * m > threshold, -2 * w, 0).astype(w.dtype),
            params,
            mean,
        )
        return flips, Flips(mean)

    return optax.GradientTransformation(init, update)
