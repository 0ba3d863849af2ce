"""SwishSign: the sign with the slope of a swish-like function."""

import jax
import jax.numpy as jnp

from bilevel import number_formats
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.quantizer import At, Quantizer, positive, with_slope
from bilevel.quantized.scales import Scale


def swish_sign(sharpness: float = 5.0, *, scale: Scale | None = None) -> Quantizer:
    """Forward sgn(x); backward dx = dw c (2 - c x tanh(c x / 2)) / (1 + cosh(c x)).

    A surrogate gradient, that of 2 sigma(c x) (1 + c x (1 - sigma(c x))) - 1. It is
    negative where |c x| is above 2.4.

    Args:
        sharpness: c.
        scale: a of the levels {-a, a}, from the weights, see `scales`; x is then in
            units of it, and a a constant for gradients.

    Returns:
        A `Quantizer`, for weights and for signs of activations.

    Raises:
        ValueError: a sharpness that is not positive.

    Source: Darabi et al. 2018, arXiv:1812.11800 (BNN+), equation 4.

    Example:
        >>> q = swish_sign()
        >>> weights = lambda x: q.quantize(x, (), At(jnp.zeros((), jnp.int32)))
        >>> float(jax.grad(weights)(0.0))
        5.0
    """
    positive("swish_sign: sharpness", sharpness)
    sign = number_formats.binary()

    def rule(u: jax.Array, at: At) -> jax.Array:
        del at
        v = jnp.abs(sharpness * u)
        # 1 / (1 + cosh v) without overflow.
        decayed = jnp.exp(-v)
        inverse = 2 * decayed / jnp.square(1 + decayed)
        slope = sharpness * (2 - v * jnp.tanh(v / 2)) * inverse
        return with_slope(sign.round(u), slope, u)

    made = elementwise("swish_sign", sign, rule, scale)
    return made_by(made, swish_sign, sharpness, scale=scale)
