"""ReSTE: the sign with the slope of a power that grows in training."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import number_formats
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    Schedule,
    as_they_are,
    nothing,
    unchanged,
    value_at,
    with_slope,
)
from bilevel.quantized.scales import Scale, channels_of, require_scale, scale_of

LEAST, MOST = 0.1, 1.5  # where the slope is cut off, as published


def reste(power: Schedule = 3.0, *, scale: Scale | None = None) -> Quantizer:
    """Forward a sgn(x); backward that of sgn(x) |x|^(1/o), cut off near and far from 0.

        slope = |x|^((1 - o) / o) / o    0.1 < |x| <= 1.5
                0.1^(1/o) / 0.1          |x| <= 0.1
                0                        |x| > 1.5

    A surrogate gradient: from straight-through, o = 1, to the sign, o -> inf.

    Args:
        power: o, at least 1, or a schedule of it; published: `reste_schedule`.
        scale: a, a constant for gradients; x is not divided by it. Published:
            `scales.mean_abs`.

    Returns:
        A `Quantizer`, for weights and for signs of activations.

    Raises:
        ValueError: a constant power below 1.

    Source: Wu et al. 2023, arXiv:2308.06689, equations 11 to 13.

    Example:
        >>> q = reste(2.0)
        >>> weights = lambda x: q.quantize(x, (), At(jnp.zeros((), jnp.int32)))
        >>> jax.vjp(weights, jnp.array([0.25, 2.0]))[1](jnp.ones(2))[0].tolist()
        [1.0, 0.0]
    """
    if not callable(power) and not power >= 1:
        raise ValueError(f"reste: power must be at least 1, got {power}.")
    require_scale("reste", scale)
    sign = number_formats.binary()

    def own_scale(x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(scale_of(scale, sign, x))

    def quantize(latent: jax.Array, learned: Any, at: At) -> jax.Array:
        del learned
        o = value_at(power, at.step).astype(latent.dtype)
        size = jnp.abs(latent)
        curved = jnp.clip(size, LEAST, MOST) ** ((1 - o) / o) / o
        slope = jnp.where(size > LEAST, curved, LEAST ** (1 / o) / LEAST)
        slope = jnp.where(size > MOST, 0, slope)
        own = own_scale(latent)
        return (own * with_slope(sign.round(latent), slope, latent)).astype(
            latent.dtype
        )

    def encode(latent: jax.Array, learned: Any) -> Codes:
        del learned
        own = own_scale(latent)
        return Codes(sign.encode(latent), None if scale is None else own)

    made = Quantizer(
        "reste",
        sign,
        as_they_are,
        nothing,
        quantize,
        encode,
        unchanged,
        channels_of(scale),
    )
    return made_by(made, reste, power, scale=scale)


def reste_schedule(num_steps: int, end: float = 3.0) -> Callable[[Any], jax.Array]:
    """The published power: o = 1 + (1 - cos(pi t / (2 T))) (end - 1).

    Args:
        num_steps: T; o stays at its end afterwards.
        end: o at T.

    Example:
        >>> [round(float(reste_schedule(10)(step)), 3) for step in (0, 5, 10)]
        [1.0, 1.586, 3.0]
    """
    return partial(_power, num_steps, end)


def _power(num_steps: int, end: float, step: Any) -> jax.Array:
    part = jnp.minimum(step / num_steps, 1.0)
    return 1 + (end - 1) * (1 - jnp.cos(math.pi / 2 * part))
