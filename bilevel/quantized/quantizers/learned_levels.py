"""Levels whose places are learned: a codebook as an outer, or a plain, variable."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.levels import levels_of
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    also_slope,
    as_they_are,
    unchanged,
)
from bilevel.quantized.scales import (
    Scale,
    least_squares,
    require_scale,
    scale_of,
)


class Codebook(NamedTuple):
    """What `learned_levels` learns.

    Attributes:
        levels: `[n]`; they may pass each other.
    """

    levels: jax.Array


def learned_levels(
    number_format: NumberFormat, scale: Scale = least_squares
) -> Quantizer:
    """w = the level nearest to x; backward dx = dw, d level_k = sum of dw at level k.

    The latter is exact but for the boundaries, which move with the levels and have no
    derivative. As in `learned_scale`, levels may be the outer variable of a bilevel
    problem, or learn along with the weights.

    Args:
        number_format: the levels at first, in units of the scale; at most 8 bits.
        scale: at first, one from the weights, see `scales`.

    Returns:
        A `Quantizer` that learns a `Codebook`.

    Raises:
        ValueError: a format of more than 8 bits, or whose levels are not listed.

    Example:
        >>> from bilevel import number_formats
        >>> q = learned_levels(number_formats.ternary())
        >>> x, at = jnp.array([0.9, -0.1, 0.7]), At(jnp.zeros((), jnp.int32))
        >>> total = lambda levels: q.quantize(x, Codebook(levels), at).sum()
        >>> jax.grad(total)(jnp.array([-1.0, 0.0, 1.0])).tolist()
        [0.0, 1.0, 2.0]
    """
    if number_format.bits > 8:
        raise ValueError(
            f"learned_levels: at most 8 bits, got {number_format.name} of "
            f"{number_format.bits}."
        )
    require_scale("learned_levels", scale)
    first = levels_of(number_format).values

    def learn(weights: jax.Array) -> Codebook:
        wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
        own = scale_of(scale, number_format, wide)
        if own.ndim:
            raise ValueError(
                f"learned_levels: all weights share the levels; expected one scale, "
                f"got the shape {own.shape}."
            )
        return Codebook(own * jnp.asarray(first, wide.dtype))

    def place(latent: jax.Array, levels: jax.Array) -> jax.Array:
        """The index of the nearest level."""
        levels = jax.lax.stop_gradient(levels)
        order = jnp.argsort(levels)
        ordered = levels[order]
        middle = ordered[1:] / 2 + ordered[:-1] / 2
        return order[jnp.searchsorted(middle, latent.astype(levels.dtype), "right")]

    def quantize(latent: jax.Array, learned: Codebook, at: At) -> jax.Array:
        del at
        level = learned.levels[place(latent, learned.levels)]
        level = jnp.where(jnp.isnan(latent), jnp.nan, level)
        return also_slope(level.astype(latent.dtype), 1.0, latent)

    def encode(latent: jax.Array, learned: Codebook) -> Codes:
        codes = place(latent, learned.levels).astype(jnp.uint8)
        return Codes(codes, levels=learned.levels)

    made = Quantizer(
        "learned_levels",
        number_format,
        as_they_are,
        learn,
        quantize,
        encode,
        unchanged,
    )
    return made_by(made, learned_levels, number_format, scale=scale)
