"""LSQ+: a scale and an offset that are learned, for activations below zero."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.quantized.levels import ends_of
from bilevel.quantized.lsq import only_positive, scaled_round
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    also_slope,
    as_they_are,
    unchanged,
)
from bilevel.quantized.scales import largest_or_one


class ScaleAndOffset(NamedTuple):
    """What `lsq_plus` learns.

    Attributes:
        scale: s, `[]`.
        offset: o, `[]`.
    """

    scale: jax.Array
    offset: jax.Array


def lsq_plus(number_format: NumberFormat) -> Quantizer:
    """y = s round(clip((x - o) / s, -Qn, Qp)) + o, where s and o are learned.

        dx = dy 1[inside],   ds = as in `lsq`, f = 1,   do = sum dy 1[outside]

    Args:
        number_format: `affine(k, signed=False)` for activations, `affine(k)` for
            weights; here any, without scale.

    Returns:
        A `Quantizer` that learns a `ScaleAndOffset`. At first, for levels of both
        signs, s = max |mean +- 3 sd| / Qn and o = 0 (published for weights); otherwise
        the least and the greatest value of an example lie at the ends.

    Raises:
        ValueError: a format with a scale of its own for each channel.

    Source: Bhalgat et al. 2020, arXiv:2004.09576, equations 3 to 8.

    Example:
        >>> from bilevel import number_formats
        >>> q = lsq_plus(number_formats.affine(2, signed=False))
        >>> learned = q.learn(jnp.array([-0.5, 1.0]))
        >>> x = jnp.array([-0.5, 0.1, 3.0])
        >>> q.quantize(x, learned, At(jnp.zeros((), jnp.int32))).tolist()
        [-0.5, 0.0, 1.0]
    """
    least, most = ends_of("lsq_plus", number_format)

    def learn(example: jax.Array) -> ScaleAndOffset:
        x = example.astype(jnp.promote_types(example.dtype, jnp.float32))
        if least < 0:
            ends = jnp.abs(jnp.mean(x) + jnp.array([-3.0, 3.0], x.dtype) * jnp.std(x))
            return ScaleAndOffset(
                largest_or_one(jnp.max(ends) / -least), jnp.zeros((), x.dtype)
            )
        scale = largest_or_one((jnp.max(x) - jnp.min(x)) / (most - least))
        return ScaleAndOffset(scale, jnp.min(x) - least * scale)

    def quantize(latent: jax.Array, learned: ScaleAndOffset, at: At) -> jax.Array:
        del at
        s, o = learned
        wide = latent.astype(s.dtype)
        shift = wide - jax.lax.stop_gradient(o)
        value = scaled_round(number_format, shift, s, (least, most))
        u = shift * (1 / s)
        is_outside = ((u < least) | (u > most)).astype(s.dtype)
        whole = value + jax.lax.stop_gradient(o)
        return also_slope(whole, is_outside, o).astype(latent.dtype)

    def encode(latent: jax.Array, learned: ScaleAndOffset) -> Codes:
        s = only_positive(learned.scale)
        u = (latent.astype(s.dtype) - learned.offset) * (1 / s)
        codes = number_format.encode(jnp.clip(u, least, most))
        return Codes(codes, s, learned.offset)

    return Quantizer(
        "lsq_plus", number_format, as_they_are, learn, quantize, encode, unchanged
    )
