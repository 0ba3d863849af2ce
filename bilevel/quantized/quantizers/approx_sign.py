"""ApproxSign: the sign with the slope of a piecewise parabola."""

import jax
import jax.numpy as jnp

from bilevel import number_formats
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.quantizer import At, Quantizer, with_slope
from bilevel.quantized.scales import Scale


def approx_sign(*, scale: Scale | None = None) -> Quantizer:
    """Forward sgn(x); backward dx = dw (2 - 2 |x|) 1[|x| <= 1].

    A surrogate gradient, that of 2 x - x |x| within [-1, 1].

    Args:
        scale: a of the levels {-a, a}, from the weights, see `scales`; x is then in
            units of it, and a a constant for gradients.

    Returns:
        A `Quantizer`, for weights and for signs of activations.

    Source: Liu et al. 2018, arXiv:1808.00278 (Bi-Real Net), equation 8.

    Example:
        >>> q = approx_sign()
        >>> weights = lambda x: q.quantize(x, (), At(jnp.zeros((), jnp.int32)))
        >>> jax.vjp(weights, jnp.array([0.25, 2.0]))[1](jnp.ones(2))[0].tolist()
        [1.5, 0.0]
    """
    sign = number_formats.binary()

    def rule(u: jax.Array, at: At) -> jax.Array:
        del at
        return with_slope(sign.round(u), jnp.maximum(2 - 2 * jnp.abs(u), 0), u)

    made = elementwise("approx_sign", sign, rule, scale)
    return made_by(made, approx_sign, scale=scale)
