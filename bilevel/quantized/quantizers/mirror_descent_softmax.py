"""Mirror descent on the simplex: exponentiated gradients of a weight's level."""

from typing import Any

import jax

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.levels import levels_of
from bilevel.quantized.quantizer import (
    At,
    Quantizer,
    Schedule,
    positive,
    value_at,
    with_slope,
)
from bilevel.quantized.quantizers.softmax_projection import mean_level, on_simplex


def mirror_descent_softmax(
    number_format: NumberFormat, kappa: Schedule = 1.0
) -> Quantizer:
    """u = softmax(kappa x), w = <levels, u>; x moves by the gradient of u.

    That is mirror descent on the simplex, u <- u exp(-eta kappa dF/du) / Z, in its dual
    form, x <- x - eta dF/du; see `mirror_descent_tanh`.

    Args:
        number_format: with the n levels; without scale, at most 8 bits.
        kappa: the inverse temperature, or a schedule of it. Published (MD-softmax-S):
            times 1.02 every 200 steps.

    Returns:
        A `Quantizer` with latent weights `[..., n]`, see `softmax_projection`.

    Raises:
        ValueError: kappa that is not positive, a format of more than 8 bits.

    Source: Ajanthan et al. 2021, arXiv:1910.08237, algorithm 1 (MD-softmax-S).

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevel import number_formats
        >>> q = mirror_descent_softmax(number_formats.binary(), kappa=5.0)
        >>> weights = lambda x: q.quantize(x, (), At(jnp.zeros((), jnp.int32)))
        >>> jax.grad(weights)(jnp.array([0.0, 3.0])).tolist()
        [-1.0, 1.0]
    """
    positive("mirror_descent_softmax: kappa", kappa)
    levels = levels_of(number_format, max_bits=8)

    def quantize(latent: jax.Array, learned: Any, at: At) -> jax.Array:
        del learned
        strength = value_at(kappa, at.step).astype(latent.dtype)
        parts = with_slope(jax.nn.softmax(strength * latent), 1.0, latent)
        return mean_level(levels, parts)

    made = on_simplex("mirror_descent_softmax", number_format, levels, quantize)
    return made_by(made, mirror_descent_softmax, number_format, kappa)
