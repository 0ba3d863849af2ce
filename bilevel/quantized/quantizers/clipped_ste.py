"""The straight-through estimator that stops at the ends of the range."""

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.levels import ends_of
from bilevel.quantized.quantizer import (
    At,
    Quantizer,
    is_within,
    rounded,
    with_slope,
)
from bilevel.quantized.scales import Scale


def clipped_ste(
    number_format: NumberFormat, *, scale: Scale | None = None
) -> Quantizer:
    """Forward w = s round(x / s); backward dx = dw within the range of the levels.

        dx = dw 1[least <= x / s <= greatest],   for binary weights dw 1[|x| <= 1]

    A surrogate gradient: that of clipping to the range, which rounding is taken for.

    Args:
        number_format: what is rounded to, as it rounds; any, without scale.
        scale: s, of the levels, from the weights, see `scales`; a constant for
            gradients.

    Returns:
        A `Quantizer`. Cost: one rounding.

    Source: Hubara et al. 2016, arXiv:1602.02830, equation 4 (for signs of activations).

    Example:
        >>> from bilevel import number_formats
        >>> q = clipped_ste(number_formats.binary())
        >>> weights = lambda x: q.quantize(x, (), At(jnp.zeros((), jnp.int32)))
        >>> x = jnp.array([0.3, -1.2])
        >>> weights(x).tolist(), jax.vjp(weights, x)[1](jnp.ones(2))[0].tolist()
        ([1.0, -1.0], [1.0, 0.0])
    """
    ends = ends_of("clipped_ste", number_format)

    def rule(u: jax.Array, at: At) -> jax.Array:
        del at
        slope = is_within(u, *ends).astype(u.dtype)
        return with_slope(rounded(number_format, jnp.clip(u, *ends)), slope, u)

    made = elementwise("clipped_ste", number_format, rule, scale)
    return made_by(made, clipped_ste, number_format, scale=scale)
