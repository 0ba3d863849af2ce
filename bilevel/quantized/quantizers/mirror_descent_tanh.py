"""Mirror descent with tanh as the mirror map: latent weights are the dual variables."""

import jax

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized import energies
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.levels import levels_of
from bilevel.quantized.quantizer import (
    At,
    Quantizer,
    Schedule,
    positive,
    value_at,
    with_slope,
)
from bilevel.quantized.scales import Scale


def mirror_descent_tanh(
    number_format: NumberFormat, kappa: Schedule = 1.0, *, scale: Scale | None = None
) -> Quantizer:
    """w = tanh(kappa x), the argmin of `tanh_projection`; x moves by the gradient of w.

    That is mirror descent, w <- argmin of <g, w> eta + D_Psi(w, w_t), in its dual form:

        x <- x - eta dF/dw,   w = s(x)

    As a pull-back it is the contrast of a nudged with a free solution, taken in the
    dual: Psi'(s(x)) - Psi'(s(x - beta g)) = beta g for every beta, so that h = g, which
    does not vanish where s saturates. Latent weights are the dual variables since
    primal ones stick at a level once they round to it.

    Args:
        number_format: with the n levels; without scale, at most 8 bits.
        kappa: the inverse temperature, or a schedule of it. Published (MD-tanh-S):
            times 1.02 every 200 steps, Adam of 1e-3.
        scale: of the levels, from the weights, see `scales`; all else is in units of
            it, and it is a constant for gradients.

    Returns:
        A `Quantizer`. Cost: s once, n - 1 tanh a weight.

    Raises:
        ValueError: kappa that is not positive, a format of more than 8 bits.

    Source: Ajanthan et al. 2021, arXiv:1910.08237, algorithm 1 (MD-tanh-S).

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevel import number_formats
        >>> q = mirror_descent_tanh(number_formats.binary(), kappa=2.0)
        >>> weights = lambda x: q.quantize(x, (), At(jnp.zeros((), jnp.int32)))
        >>> float(jax.grad(weights)(3.0))
        1.0
    """
    positive("mirror_descent_tanh: kappa", kappa)
    levels = levels_of(number_format, max_bits=8)
    energy = energies.entropy(levels)

    def rule(u: jax.Array, at: At) -> jax.Array:
        strength = value_at(kappa, at.step).astype(u.dtype)
        return with_slope(energy.minimiser(u, strength), 1.0, u)

    made = elementwise(
        "mirror_descent_tanh",
        number_format,
        rule,
        scale,
        encode=lambda u: number_format.encode(levels.nearest(u)),
    )
    return made_by(made, mirror_descent_tanh, number_format, kappa, scale=scale)
