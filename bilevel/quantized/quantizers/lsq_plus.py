"""LSQ+: a scale and an offset that are learned, for activations below zero."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.iteration import iterate
from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.number_formats.scaled import quotient
from bilevel.quantized.levels import ends_of
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    also_slope,
    as_they_are,
    unchanged,
)
from bilevel.quantized.quantizers.lsq import only_positive, scaled_round
from bilevel.quantized.scales import least_squares


class ScaleAndOffset(NamedTuple):
    """What `lsq_plus` learns.

    Attributes:
        scale: s, `[]`.
        offset: o, `[]`.
    """

    scale: jax.Array
    offset: jax.Array


def lsq_plus(
    number_format: NumberFormat,
    *,
    start: Literal["least_squares", "published"] = "least_squares",
) -> Quantizer:
    """y = s round(clip((x - o) / s, -Qn, Qp)) + o, where s and o are learned.

        dx = dy 1[inside],   ds = as in `lsq`, f = 1,   do = sum dy 1[outside]

    Args:
        number_format: `affine(k, signed=False)` for activations, `affine(k)` for
            weights; here any, without scale.
        start: s and o at first, from weights, or from an example of activations.
            "least_squares": of the least squared error; o is 0 for levels of both
            signs. "published": for levels of both signs s = max |mean +- 3 sd| / Qn
            and o = 0, otherwise the least and the greatest value lie at the ends.

    Returns:
        A `Quantizer` that learns a `ScaleAndOffset`.

    Raises:
        ValueError: a format with a scale of its own for each channel, or of powers of
            two without a sign; a start that is none.

    Source: Bhalgat et al. 2020, arXiv:2004.09576, equations 3 to 8.

    Example:
        >>> from bilevel import number_formats
        >>> q = lsq_plus(number_formats.affine(2, signed=False), start="published")
        >>> learned = q.learn(jnp.array([-0.5, 1.0]))
        >>> x = jnp.array([-0.5, 0.1, 3.0])
        >>> q.quantize(x, learned, At(jnp.zeros((), jnp.int32))).tolist()
        [-0.5, 0.0, 1.0]
    """
    least, most = ends_of("lsq_plus", number_format)
    if start not in ("least_squares", "published"):
        raise ValueError(
            f'lsq_plus: start must be "least_squares" or "published", got {start!r}.'
        )

    if least > 0 and most / least > 2.0**24:
        raise ValueError(
            f"lsq_plus: {number_format.name} has levels from {least} to {most} and no "
            "0, over which no range of numbers can be laid evenly; take integers."
        )

    def learn(example: jax.Array) -> ScaleAndOffset:
        x = example.astype(jnp.promote_types(example.dtype, jnp.float32))
        if not x.size:
            return ScaleAndOffset(jnp.ones((), x.dtype), jnp.zeros((), x.dtype))
        if least >= 0:
            return _over_range(number_format, x, start)
        none = jnp.zeros((), x.dtype)
        if start == "least_squares":
            return ScaleAndOffset(least_squares(number_format, x), none)
        ends = jnp.abs(jnp.mean(x) + jnp.array([-3.0, 3.0], x.dtype) * jnp.std(x))
        return ScaleAndOffset(_positive_or_one(jnp.max(ends) / -least), none)

    def quantize(latent: jax.Array, learned: ScaleAndOffset, at: At) -> jax.Array:
        del at
        s, o = learned
        wide = latent.astype(s.dtype)
        shift = wide - jax.lax.stop_gradient(o)
        value = scaled_round(number_format, shift, s, (least, most))
        u = quotient(shift, s)
        is_outside = ((u < least) | (u > most)).astype(s.dtype)
        whole = value + jax.lax.stop_gradient(o)
        return also_slope(whole, is_outside, o).astype(latent.dtype)

    def encode(latent: jax.Array, learned: ScaleAndOffset) -> Codes:
        s = only_positive(learned.scale)
        u = quotient(latent.astype(s.dtype) - learned.offset, s)
        codes = number_format.encode(jnp.clip(u, least, most))
        return Codes(codes, s, learned.offset)

    made = Quantizer(
        "lsq_plus", number_format, as_they_are, learn, quantize, encode, unchanged
    )
    return made_by(made, lsq_plus, number_format, start=start)


CUTS = np.array([(i, j) for i in range(10, 2, -1) for j in range(10, 2, -1)]) / 10
"""What of the range below and above the mean may lie within the levels."""


def _over_range(
    number_format: NumberFormat, x: jax.Array, start: str
) -> ScaleAndOffset:
    """Both ends of the levels over the values, or over those parts that serve best."""
    least, most = number_format.range
    mean = jnp.mean(x)
    below, above = mean - jnp.min(x), jnp.max(x) - mean

    def spanning(cut: jax.Array) -> ScaleAndOffset:
        scale = (cut[0] * below + cut[1] * above) / (most - least)
        scale = _positive_or_one(scale)
        return ScaleAndOffset(scale, mean - cut[0] * below - least * scale)

    cuts = jnp.asarray(CUTS, x.dtype)
    if start == "published":
        return spanning(cuts[0])

    def step(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        index, best, error = carry
        scale, offset = spanning(cuts[index])
        u = jnp.clip(quotient(x - offset, scale), least, most)
        own = jnp.sum(jnp.square(x - offset - scale * number_format.round(u)))
        return (
            index + 1,
            jnp.where(own < error, index, best),
            jnp.minimum(own, error),
        )

    zero = jnp.zeros((), jnp.int32)
    carry = (zero, zero, jnp.full((), jnp.inf, x.dtype))
    return spanning(cuts[iterate(step, carry, num_steps=len(CUTS))[1]])


def _positive_or_one(scale: jax.Array) -> jax.Array:
    """1 in place of a scale of 0, whose quotient is not a number."""
    return jnp.where(scale > 0, scale, 1)
