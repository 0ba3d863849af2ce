"""Proximal mean-field: tanh as the argmin that comes to levels as kappa grows."""

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized import energies
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.levels import levels_of
from bilevel.quantized.nudged_argmin import nudged_argmin
from bilevel.quantized.quantizer import At, Quantizer, Schedule, positive, value_at
from bilevel.quantized.scales import Scale


def tanh_projection(
    number_format: NumberFormat,
    kappa: Schedule = 1.0,
    *,
    beta: float = 0.0,
    scale: Scale | None = None,
) -> Quantizer:
    """w = argmin of Psi(w) / kappa - w x: tanh(kappa x) for binary weights (PMF).

    Psi is the negative entropy, ((1 + w) log(1 + w) + (1 - w) log(1 - w)) / 2 for
    {-1, 1}. For any other levels w is a staircase of tanh,

        s(x) = (least + greatest) / 2 + sum_j half_gap_j tanh(kappa (x - boundary_j))

    which comes to the nearest level as kappa -> inf; for {-1, 0, 1} it is the published
    (tanh kappa (x + 1/2) + tanh kappa (x - 1/2)) / 2. The pull-back is that of a nudge
    beta, h = [s(x) - s(x - beta g)] / beta; of beta -> 0 it is s'(x) g, for binary
    weights kappa (1 - w^2) g, which vanishes where s saturates.

    Args:
        number_format: with the n levels; without scale, at most 8 bits.
        kappa: the inverse temperature, or a schedule of it. Published: times 1.02 every
            200 steps, `optax.exponential_decay(1.0, 200, 1.02, staircase=True)`.
        beta: the nudge; 0 for its limit, which those too small for the dtype have.
        scale: of the levels, from the weights, see `scales`; all else is in units of
            it, and it is a constant for gradients.

    Returns:
        A `Quantizer`. Cost: s twice and its derivative once, each n - 1 tanh a weight.

    Raises:
        ValueError: kappa that is not positive, a negative beta, a format of more than 8
            bits.

    Source: Ajanthan et al. 2019, arXiv:1812.04353 (PMF); the tanh form: Ajanthan et al.
    2021, arXiv:1910.08237.

    Example:
        >>> from bilevel import number_formats
        >>> q = tanh_projection(number_formats.binary(), kappa=2.0)
        >>> at = At(jnp.zeros((), jnp.int32))
        >>> w = q.quantize(jnp.array([0.5, -3.0]), (), at)
        >>> [round(float(one), 3) for one in w]
        [0.762, -1.0]
    """
    positive("tanh_projection: kappa", kappa)
    if not beta >= 0:
        raise ValueError(f"tanh_projection: beta must not be negative, got {beta}.")
    levels = levels_of(number_format, max_bits=8)
    weights = nudged_argmin(
        energies.entropy(levels),
        lambda x, strength, g: finite(x, strength, beta * g),
    )

    def rule(u: jax.Array, at: At) -> jax.Array:
        return weights(u, value_at(kappa, at.step).astype(u.dtype))

    made = elementwise(
        "tanh_projection",
        number_format,
        rule,
        scale,
        encode=lambda u: number_format.encode(levels.nearest(u)),
    )
    return made_by(made, tanh_projection, number_format, kappa, beta=beta, scale=scale)


def finite(x: jax.Array, kappa: jax.Array, tilt: jax.Array) -> jax.Array:
    """The tilt, but 0, its limit, where a difference would be lost to rounding."""
    least = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.maximum(jnp.abs(x), 1 / kappa)
    return jnp.where(jnp.abs(tilt) < least, 0, tilt)
