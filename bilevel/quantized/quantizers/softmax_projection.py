"""Proximal mean-field on the simplex: a probability for each level."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized import energies
from bilevel.quantized.levels import Levels, along_last, levels_of
from bilevel.quantized.nudged_argmin import nudged_argmin
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    Schedule,
    nothing,
    positive,
    unchanged,
    value_at,
)


def softmax_projection(number_format: NumberFormat, kappa: Schedule = 1.0) -> Quantizer:
    """w = <levels, u>, u = argmin over the simplex of <u, log u> / kappa - <u, x>.

    Each weight has a latent number for each level: u = softmax(kappa x) says how much
    of it is at which, and comes to one of them as kappa -> inf. The pull-back to x is
    that of a nudge beta -> 0 of u: kappa (diag(u) - u u') g.

    Args:
        number_format: with the n levels; without scale, at most 8 bits.
        kappa: the inverse temperature, or a schedule of it. Published: times 1.02 every
            200 steps.

    Returns:
        A `Quantizer` with latent weights `[..., n]` for weights `[...]`, which start at
        -|w - level| for given real weights w. Cost: softmax twice, its derivative once.

    Raises:
        ValueError: kappa that is not positive, a format of more than 8 bits.

    Source: Ajanthan et al. 2019, arXiv:1812.04353, equations 8 to 10.

    Example:
        >>> from bilevel import number_formats
        >>> q = softmax_projection(number_formats.ternary(), kappa=50.0)
        >>> latent = q.start(jnp.array([0.9, 0.1]), None)
        >>> latent.shape
        (2, 3)
        >>> q.quantize(latent, (), At(jnp.zeros((), jnp.int32))).round(3).tolist()
        [1.0, 0.0]
    """
    positive("softmax_projection: kappa", kappa)
    levels = levels_of(number_format, max_bits=8)
    simplex = nudged_argmin(
        energies.simplex_entropy(),
        lambda x, _, g: jnp.zeros_like(g),
    )

    def quantize(latent: jax.Array, learned: Any, at: At) -> jax.Array:
        del learned
        strength = value_at(kappa, at.step).astype(latent.dtype)
        return mean_level(levels, simplex(latent, strength))

    made = on_simplex("softmax_projection", number_format, levels, quantize)
    return made_by(made, softmax_projection, number_format, kappa)


def on_simplex(
    name: str, number_format: NumberFormat, levels: Levels, quantize: Any
) -> Quantizer:
    """A quantiser whose latent weights are a number for each level."""

    def start(weights: jax.Array, key: jax.Array | None) -> jax.Array:
        del key
        return -jnp.abs(weights[..., None] - along_last(levels.values, weights))

    def encode(latent: jax.Array, learned: Any) -> Codes:
        del learned
        likeliest = jnp.argmax(latent, -1)
        level = jnp.asarray(levels.values, latent.dtype)[likeliest]
        return Codes(number_format.encode(level))

    return Quantizer(name, number_format, start, nothing, quantize, encode, unchanged)


def mean_level(levels: Levels, parts: jax.Array) -> jax.Array:
    """The mean of the levels with the weights `parts`, `[..., n] -> [...]`."""
    values = jnp.asarray(levels.values, parts.dtype)
    return jnp.matmul(parts, values, precision="highest")
