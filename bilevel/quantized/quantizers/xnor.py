"""XNOR-Net's weights: signs times the mean magnitude of their channel."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import number_formats
from bilevel.number_formats.recipe import made_by
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
from bilevel.quantized.scales import mean_abs


def xnor(*, per_channel: Channels = True) -> Quantizer:
    """w = a sgn(x), a = mean |x|: the nearest such to x in the mean square.

    Backward is the chain rule, through a, too, with the sign's slope 1[|x| <= 1]:

        dx_i = sgn(x_i) / n sum_j dw_j sgn(x_j) + a dw_i 1[|x_i| <= 1]

    (The paper's dw_i (1 / n + a 1[|x_i| <= 1]) leaves the sum out, and is no chain
    rule.)

    Args:
        per_channel: an a for each output channel, see `quantized.scales.Channels`;
            False: one for all.

    Returns:
        A `Quantizer`.

    Source: Rastegari et al. 2016, arXiv:1603.05279, equations 5 to 7.

    Example:
        >>> x = jnp.array([[0.5, -3.0], [-0.25, 1.0]])
        >>> xnor().quantize(x, (), At(jnp.zeros((), jnp.int32))).tolist()
        [[0.375, -2.0], [-0.375, 2.0]]
    """
    sign = number_formats.binary()

    def quantize(latent: jax.Array, learned: Any, at: At) -> jax.Array:
        del learned, at
        dtype = latent.dtype
        latent = latent.astype(jnp.promote_types(dtype, jnp.float32))
        signs = sign.round(latent)
        # Not mean_abs of latent: the derivative of |x| at 0 is sgn(0) = 1 here, and a
        # channel of zeros must have one, to leave them.
        size = with_slope(jnp.abs(latent), signs, latent)
        moved = size - jax.lax.stop_gradient(size)  # zero
        axes, keep = channel_axes(latent, per_channel), per_channel is not False
        a = mean_abs(sign, jax.lax.stop_gradient(size), per_channel=per_channel)
        a = a + jnp.sum(moved, axes, keepdims=keep) * (a.size / max(latent.size, 1))
        is_inside = (jnp.abs(latent) <= 1).astype(latent.dtype)
        return (a * with_slope(signs, is_inside, latent)).astype(dtype)

    def encode(latent: jax.Array, learned: Any) -> Codes:
        del learned
        wide = latent.astype(jnp.promote_types(latent.dtype, jnp.float32))
        a = mean_abs(sign, wide, per_channel=per_channel)
        return Codes(sign.encode(latent), a)

    made = Quantizer(
        "xnor",
        sign,
        as_they_are,
        nothing,
        quantize,
        encode,
        unchanged,
        per_channel,
    )
    return made_by(made, xnor, per_channel=per_channel)
