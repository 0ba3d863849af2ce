"""PACT: activations with a clipping level that is learned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import number_formats
from bilevel.number_formats.number_format import whole
from bilevel.number_formats.recipe import made_by
from bilevel.number_formats.scaled import quotient
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    also_slope,
    as_they_are,
    positive,
    unchanged,
    with_slope,
)


class Clip(NamedTuple):
    """What `pact` learns.

    Attributes:
        clip: `[]`, a; keep it from growing by an L2 penalty, as published.
    """

    clip: jax.Array


def pact(bits: int, *, clip: float = 6.0) -> Quantizer:
    """y = s round(clip(z, 0, a) / s), s = a / (2^k - 1), with a learned.

        dz = dy 1[0 <= z < a],   da = sum dy 1[z >= a]

    Args:
        bits: k, 1 to 8.
        clip: a at first; published 10, with an L2 penalty as large as that of weights.

    Returns:
        A `Quantizer` for non-negative activations, see `quantized.activation`; it
        learns a `Clip`. An a that is not positive gives NaN.

    Raises:
        ValueError: bits out of range, a clip that is not positive.

    Source: Choi et al. 2018, arXiv:1805.06085, equations 1 to 3.

    Example:
        >>> q = pact(2)
        >>> level = lambda z, a: q.quantize(z, Clip(a), At(jnp.zeros((), jnp.int32)))
        >>> level(jnp.array([0.4, 1.3, 7.0]), jnp.array(3.0)).tolist()
        [0.0, 1.0, 3.0]
    """
    bits = whole("pact: bits", bits)
    if not 1 <= bits <= 8:
        raise ValueError(f"pact: bits must lie in [1, 8], got {bits}.")
    positive("pact: clip", clip)
    steps = 2**bits - 1
    levels = (
        number_formats.codebook([0.0, 1.0], "unsigned1")
        if bits == 1
        else number_formats.affine(bits, signed=False)
    )

    def learn(example: jax.Array) -> Clip:
        return Clip(jnp.asarray(clip, jnp.promote_types(example.dtype, jnp.float32)))

    def scale_of(learned: Clip, dtype: Any) -> jax.Array:
        own = jnp.where(learned.clip > 0, learned.clip, jnp.nan)
        return (own / steps).astype(dtype)

    def quantize(latent: jax.Array, learned: Clip, at: At) -> jax.Array:
        del at
        wide = latent.astype(learned.clip.dtype)
        s = scale_of(learned, wide.dtype)
        value = s * levels.round(quotient(wide, s))
        is_inside = (0 <= wide) & (wide < learned.clip)
        moved = with_slope(value, is_inside.astype(wide.dtype), wide)
        is_above = (wide >= learned.clip).astype(wide.dtype)
        return also_slope(moved, is_above, learned.clip).astype(latent.dtype)

    def encode(latent: jax.Array, learned: Clip) -> Codes:
        wide = latent.astype(learned.clip.dtype)
        s = scale_of(learned, wide.dtype)
        return Codes(levels.encode(quotient(wide, s)), s)

    made = Quantizer("pact", levels, as_they_are, learn, quantize, encode, unchanged)
    return made_by(made, pact, bits, clip=clip)
