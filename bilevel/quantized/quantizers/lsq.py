"""LSQ: a scale that is learned along with the weights."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.number_formats.scaled import quotient
from bilevel.quantized.channels import Channels
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
from bilevel.quantized.scales import (
    Rule,
    greatest_positive,
    least_squares,
    require_rule,
)


class LearnedScale(NamedTuple):
    """What `lsq` learns.

    Attributes:
        scale: s, `[]` or `[1, ..., out]`.
    """

    scale: jax.Array


def lsq(
    number_format: NumberFormat,
    *,
    per_channel: Channels = False,
    scale_gradient: bool = True,
    scale: Rule = least_squares,
) -> Quantizer:
    """w = s round(clip(x / s, -Qn, Qp)), where s is learned by its gradient.

        dx = dw 1[-Qn <= x / s <= Qp]
        ds = f sum dw (round(x / s) - x / s)   inside,   -Qn or Qp outside

    with f = 1 / sqrt(N Qp), N the number of weights of the scale, and Qp the greatest
    level of integers, the anchor of other formats. It is the single-level case of
    learning a scale: s follows the training loss along with the weights. The bilevel
    one takes `quantized.learned_scale` and the validation loss.

    Args:
        number_format: published: `affine(k)` for weights, `affine(k, signed=False)` for
            activations behind a relu; here any, without scale.
        per_channel: a scale for each output channel, see `quantized.scales.Channels`.
        scale_gradient: multiply ds by f, as published. Of activations N counts the
            features, not the examples: `activation` knows which axis those are.
        scale: the one at first, of the weights, or of an example of the activations: a
            rule of `quantized.scales`. Published: `scales.published_for_lsq`, which is
            12 dB coarser for 8 bits.

    Returns:
        A `Quantizer` that learns a `LearnedScale`. An s that is not positive gives NaN:
        take a smaller learning rate for it.

    Raises:
        ValueError: a format with a scale of its own for each channel; a scale that is
            no rule.

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
    require_rule("lsq", scale)
    top = greatest_positive(number_format)

    def learn(weights: jax.Array) -> LearnedScale:
        wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
        return LearnedScale(scale(number_format, wide, per_channel=per_channel))

    def quantize(latent: jax.Array, learned: LearnedScale, at: At) -> jax.Array:
        s = learned.scale
        factor = 1.0
        if scale_gradient:
            examples = math.prod(latent.shape[: at.batch_axes.value])
            number = latent.size / max(s.size * examples, 1)
            factor = 1 / math.sqrt(max(number, 1) * top)
        return scaled_round(number_format, latent, s, (least, most), factor)

    def encode(latent: jax.Array, learned: LearnedScale) -> Codes:
        s = only_positive(learned.scale)
        u = jnp.clip(quotient(latent.astype(s.dtype), s), least, most)
        return Codes(number_format.encode(u), s)

    made = Quantizer(
        "lsq",
        number_format,
        as_they_are,
        learn,
        quantize,
        encode,
        unchanged,
        per_channel,
    )
    return made_by(
        made,
        lsq,
        number_format,
        per_channel=per_channel,
        scale_gradient=scale_gradient,
        scale=scale,
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
    u = quotient(wide, s)
    level = rounded(number_format, jnp.clip(u, *ends))
    is_inside = is_within(u, *ends)
    value = with_slope(s * level, is_inside.astype(s.dtype), wide)
    in_scale = factor * jnp.where(is_inside, level - u, level)
    return also_slope(value, in_scale, s).astype(latent.dtype)


def only_positive(scale: jax.Array) -> jax.Array:
    """The scale, NaN where it is not positive, which would turn all signs."""
    return jnp.where(scale > 0, scale, jnp.nan)
