"""Ternary weight networks."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import number_formats
from bilevel.number_formats.recipe import made_by
from bilevel.number_formats.scaled import quotient
from bilevel.quantized.channels import Channels, channel_axes
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    as_they_are,
    nothing,
    unchanged,
    with_slope,
)
from bilevel.quantized.scales import max_abs


def twn(*, threshold: float = 0.7, per_channel: Channels = False) -> Quantizer:
    """w in {-a, 0, a}: 0 where |x| <= D = 0.7 mean |x|, a the mean |x| of the others.

    Backward dx = dw 1[|x| <= 1]; D and a are constants for gradients.

    Args:
        threshold: the 0.7, which is near the least squared error for uniform and for
            normal weights.
        per_channel: a and D for each output channel, see `quantized.scales.Channels`;
            published: one.

    Returns:
        A `Quantizer`.

    Raises:
        ValueError: a negative threshold.

    Source: Li, Zhang, Liu 2016, arXiv:1605.04711, equations 5 and 6.

    Example:
        >>> x = jnp.array([0.125, -1.0, 0.5])
        >>> twn().quantize(x, (), At(jnp.zeros((), jnp.int32))).tolist()
        [0.0, -0.75, 0.75]
    """
    if not threshold >= 0:
        raise ValueError(f"twn: threshold must not be negative, got {threshold}.")
    ternary = number_formats.ternary()

    def parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Levels -1, 0, 1, and a."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes, keep = channel_axes(x, per_channel), per_channel is not False
        # In units of the largest: a sum of others may be no number of the dtype.
        unit = max_abs(ternary, x, per_channel=per_channel)
        size = jnp.abs(quotient(x, unit))
        count = max(x.size // max(unit.size, 1), 1)
        least = threshold * jnp.sum(size, axes, keepdims=keep) / count
        # NaN stays: it is not less.
        level = jnp.where(size <= least, 0, jnp.sign(x))
        counts = jnp.abs(level)
        number = jnp.sum(counts, axes, keepdims=keep)
        total = jnp.sum(size * counts, axes, keepdims=keep)
        mean = unit * (total / jnp.maximum(number, 1))
        return level, jnp.where(number > 0, mean, 1)

    def quantize(latent: jax.Array, learned: Any, at: At) -> jax.Array:
        del learned, at
        level, a = parts(latent)
        is_inside = (jnp.abs(latent) <= 1).astype(latent.dtype)
        return with_slope((a * level).astype(latent.dtype), is_inside, latent)

    def encode(latent: jax.Array, learned: Any) -> Codes:
        del learned
        level, a = parts(latent)
        return Codes(ternary.encode(level), a)

    made = Quantizer(
        "twn",
        ternary,
        as_they_are,
        nothing,
        quantize,
        encode,
        unchanged,
        per_channel,
    )
    return made_by(made, twn, threshold=threshold, per_channel=per_channel)
