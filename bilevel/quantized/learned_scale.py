"""A scale as an outer variable: its logarithm, to be tuned on validation data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.number_formats.scaled import quotient
from bilevel.quantized.levels import ends_of
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    as_they_are,
    unchanged,
)
from bilevel.quantized.quantizers.lsq import scaled_round
from bilevel.quantized.scales import (
    Scale,
    channels_of,
    least_squares,
    require_scale,
    scale_of,
)


class LogScale(NamedTuple):
    """What `learned_scale` learns.

    Attributes:
        log_scale: log s, `[]` or `[1, ..., out]`: steps are relative, s stays positive.
    """

    log_scale: jax.Array


def learned_scale(
    number_format: NumberFormat, scale: Scale = least_squares
) -> Quantizer:
    """w = s round(clip(x / s)), s = exp(log_scale), with the derivatives of `lsq`.

    For true bilevel quantisation: latent weights are the inner variable, trained on the
    training loss, `state.learned` the outer one, tuned on the validation loss by any
    rule of `hypergradients`. Surrogate slopes are constants for second derivatives, so
    the Hessian of the training loss is M H M, symmetric, and CG and the implicit rule
    go with it. It is singular where weights are clipped, unless a penalty on latent
    weights is part of the training loss: have one.

    Beyond s times the ends of the format x is clipped: a scale is a clipping range.

    Args:
        number_format: any, without scale.
        scale: at first, from the weights, see `scales`; `of_channels(least_squares)`
            for one for each output channel.

    Returns:
        A `Quantizer` that learns a `LogScale`.

    Raises:
        ValueError: a format with a scale of its own for each channel.

    Source: the derivatives: Esser et al. 2020, arXiv:1902.08153, equations 2 and 3.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized import scales
        >>> q = learned_scale(number_formats.symmetric(3), scales.max_abs)
        >>> learned = q.learn(jnp.array([0.3, -1.5]))
        >>> round(float(jnp.exp(learned.log_scale)), 3)
        0.5
    """
    ends = ends_of("learned_scale", number_format)
    require_scale("learned_scale", scale)

    def learn(weights: jax.Array) -> LogScale:
        wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
        return LogScale(jnp.log(scale_of(scale, number_format, wide)))

    def quantize(latent: jax.Array, learned: LogScale, at: At) -> jax.Array:
        del at
        return scaled_round(number_format, latent, jnp.exp(learned.log_scale), ends)

    def encode(latent: jax.Array, learned: LogScale) -> Codes:
        s = jnp.exp(learned.log_scale)
        u = jnp.clip(quotient(latent.astype(s.dtype), s), *ends)
        return Codes(number_format.encode(u), s)

    made = Quantizer(
        "learned_scale",
        number_format,
        as_they_are,
        learn,
        quantize,
        encode,
        unchanged,
        channels_of(scale),
    )
    return made_by(made, learned_scale, number_format, scale=scale)
