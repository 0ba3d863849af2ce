"""The straight-through estimator."""

import jax

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.quantizer import At, Quantizer, rounded, with_slope
from bilevel.quantized.scales import Scale


def ste(number_format: NumberFormat, *, scale: Scale | None = None) -> Quantizer:
    """Forward w = s round(x / s); backward dx = dw, as if nothing had been rounded.

    A surrogate gradient: the derivative of the forward map is 0 almost everywhere.

    Args:
        number_format: what is rounded to, as it rounds; any, without scale. One that
            overflows to infinity or NaN does so here: take `saturating=True`.
        scale: s, of the levels, from the weights, see `scales`; a constant for
            gradients.

    Returns:
        A `Quantizer`. Cost: one rounding.

    Source: Bengio, Leonard, Courville 2013, arXiv:1308.3432.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevel import number_formats
        >>> q = ste(number_formats.symmetric(3), scale=0.5)
        >>> weights = lambda x: q.quantize(x, (), At(jnp.zeros((), jnp.int32)))
        >>> weights(jnp.array([0.3, -1.2, 7.0])).tolist()
        [0.5, -1.0, 1.5]
    """

    def rule(u: jax.Array, at: At) -> jax.Array:
        del at
        return with_slope(rounded(number_format, u), 1.0, u)

    made = elementwise("ste", number_format, rule, scale)
    return made_by(made, ste, number_format, scale=scale)
