"""LSQ: a scale that is learned along with the weights."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.quantized.levels import ends_of
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    also_slope,
    as_they_are,
    is_within,
    rounded,
    unchanged,
    with_slope,
)
from bilevel.quantized.scales import channel_axes, greatest, largest_or_one


class LearnedScale(NamedTuple):
    """What `lsq` learns.

    Attributes:
        scale: s, `[]` or `[1, ..., out]`.
    """

    scale: jax.Array


def lsq(
    number_format: NumberFormat,
    *,
    per_channel: bool = False,
    scale_gradient: bool = True,
) -> Quantizer:
    """w = s round(clip(x / s, -Qn, Qp)), where s is learned by its gradient.

        dx = dw 1[-Qn <= x / s <= Qp]
        ds = f sum dw (round(x / s) - x / s)   inside,   -Qn or Qp outside

    with f = 1 / sqrt(N Qp), N the number of weights of the scale. It is the single-
    level case of learning a scale: s follows the training loss along with the weights.
    The bilevel one takes `quantized.learned_scale` and the validation loss.

    Args:
        number_format: published: `affine(k)` for weights, `affine(k, signed=False)` for
            activations behind a relu; here any, without scale.
        per_channel: a scale for each output channel, the last axis.
        scale_gradient: multiply ds by f, as published. N counts all numbers, those of
            a batch of activations, too, where the paper has the features alone.

    Returns:
        A `Quantizer` that learns a `LearnedScale`, at first 2 mean |x| / sqrt(Qp) of
        the weights, or of an example of the activations. An s that is not positive
        gives NaN: take a smaller learning rate for it.

    Raises:
        ValueError: a format with a scale of its own for each channel.

    Source: Esser et al. 2020, arXiv:1902.08153, equations 1 to 5.

    Example:
        >>> from bilevel import number_formats
        >>> q = lsq(number_formats.affine(3))
        >>> x, at = jnp.array([0.3, -1.0, 4.0]), At(jnp.zeros((), jnp.int32))
        >>> weights = lambda s: q.quantize(x, LearnedScale(s), at)
        >>> weights(jnp.array(0.5)).tolist()
        [0.5, -1.0, 1.5]
    """
    least, most = ends_of("lsq", number_format)
    top = greatest_positive(number_format)

    def learn(weights: jax.Array) -> LearnedScale:
        axes = channel_axes(weights, per_channel)
        size = jnp.mean(jnp.abs(weights), axes, keepdims=per_channel)
        wide = jnp.promote_types(weights.dtype, jnp.float32)
        return LearnedScale(largest_or_one(2 * size.astype(wide) / math.sqrt(top)))

    def quantize(latent: jax.Array, learned: LearnedScale, at: At) -> jax.Array:
        del at
        s = learned.scale
        factor = 1.0
        if scale_gradient:
            factor = 1 / math.sqrt(latent.size / s.size * top)
        return scaled_round(number_format, latent, s, (least, most), factor)

    def encode(latent: jax.Array, learned: LearnedScale) -> Codes:
        s = only_positive(learned.scale)
        u = jnp.clip(latent.astype(s.dtype) * (1 / s), least, most)
        return Codes(number_format.encode(u), s, jnp.zeros_like(s))

    return Quantizer(
        "lsq", number_format, as_they_are, learn, quantize, encode, unchanged
    )


def scaled_round(
    number_format: NumberFormat,
    latent: jax.Array,
    scale: jax.Array,
    ends: tuple[float, float],
    factor: float = 1.0,
) -> jax.Array:
    """s round(clip(x / s)), with LSQ's derivatives in x and, times `factor`, in s."""
    s = only_positive(scale)
    wide = latent.astype(s.dtype)
    u = wide * (1 / s)
    level = rounded(number_format, jnp.clip(u, *ends))
    is_inside = is_within(u, *ends)
    value = with_slope(s * level, is_inside.astype(s.dtype), wide)
    in_scale = factor * jnp.where(is_inside, level - u, level)
    return also_slope(value, in_scale, s).astype(latent.dtype)


def only_positive(scale: jax.Array) -> jax.Array:
    """The scale, NaN where it is not positive, which would turn all signs."""
    return jnp.where(scale > 0, scale, jnp.nan)


def greatest_positive(number_format: NumberFormat) -> float:
    """Qp, or Qn where there are no positive levels."""
    most = float(number_format.range[1])
    return most if most > 0 else float(greatest(number_format))
