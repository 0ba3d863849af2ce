"""XNOR-Net's weights: signs times the mean magnitude of their channel."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import number_formats
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


def xnor(*, per_channel: bool = True) -> Quantizer:
    """w = a sgn(x), a = mean |x|: the nearest such to x in the mean square.

    Backward is the chain rule, through a, too, with the sign's slope 1[|x| <= 1]:

        dx_i = sgn(x_i) / n sum_j dw_j sgn(x_j) + a dw_i 1[|x_i| <= 1]

    (The paper's dw_i (1 / n + a 1[|x_i| <= 1]) leaves the sum out, and is no chain
    rule.)

    Args:
        per_channel: an a for each output channel, the last axis; otherwise one.

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
        # Not mean_abs of latent: the derivative of |x| at 0 is sgn(0) = 1 here.
        size = with_slope(jnp.abs(latent), signs, latent)
        a = mean_abs(sign, size, per_channel=per_channel)
        is_inside = (jnp.abs(latent) <= 1).astype(latent.dtype)
        return (a * with_slope(signs, is_inside, latent)).astype(dtype)

    def encode(latent: jax.Array, learned: Any) -> Codes:
        del learned
        wide = latent.astype(jnp.promote_types(latent.dtype, jnp.float32))
        a = mean_abs(sign, wide, per_channel=per_channel)
        return Codes(sign.encode(latent), a, jnp.zeros_like(a))

    return Quantizer("xnor", sign, as_they_are, nothing, quantize, encode, unchanged)
