"""DoReFa: weights through tanh onto even levels, activations clipped to [0, 1]."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import number_formats
from bilevel.number_formats.number_format import whole
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    as_they_are,
    nothing,
    unchanged,
    with_slope,
)


def dorefa(bits: int) -> Quantizer:
    """w = 2 q(tanh(x) / (2 max |tanh(x)|) + 1/2) - 1.

    Here q(z) = round((2^k - 1) z) / (2^k - 1). Backward q is straight through, dz = dq;
    all else is the chain rule, through the maximum, too.

    Args:
        bits: k, 2 to 8. (Of one bit DoReFa has `xnor(per_channel=False)` with a
            straight-through sign.)

    Returns:
        A `Quantizer` for weights, with the levels -1, -1 + 2 / (2^k - 1), ..., 1.

    Raises:
        ValueError: bits out of range.

    Source: Zhou et al. 2016, arXiv:1606.06160, equations 5, 6 and 9.

    Example:
        >>> x = jnp.array([0.1, -3.0, 0.6])
        >>> w = dorefa(2).quantize(x, (), At(jnp.zeros((), jnp.int32)))
        >>> [round(float(one), 3) for one in w]
        [0.333, -1.0, 0.333]
    """
    bits = _checked("dorefa", bits, 2)
    steps = 2**bits - 1
    levels = number_formats.codebook(
        2 * np.arange(steps + 1) / steps - 1, f"dorefa{bits}"
    )

    def unit(latent: jax.Array) -> jax.Array:
        """Onto [0, 1]."""
        bent = jnp.tanh(latent.astype(jnp.promote_types(latent.dtype, jnp.float32)))
        largest = jnp.max(jnp.abs(bent), initial=0.0)
        return bent / (2 * jnp.where(largest > 0, largest, 1)) + 0.5

    def place(latent: jax.Array) -> jax.Array:
        return jnp.round(steps * unit(latent))

    def quantize(latent: jax.Array, learned: Any, at: At) -> jax.Array:
        del learned, at
        z = unit(latent)
        found = place(latent)
        # From the table, as export has it; 2 q - 1 is its value up to rounding.
        safe = jnp.where(jnp.isnan(found), 0, found)
        level = levels.decode(safe.astype(jnp.uint8), z.dtype)
        value = jnp.where(jnp.isnan(found), found, level)
        return with_slope(value, 2.0, z).astype(latent.dtype)

    def encode(latent: jax.Array, learned: Any) -> Codes:
        del learned
        return Codes(place(latent).astype(jnp.uint8))

    made = Quantizer(
        "dorefa", levels, as_they_are, nothing, quantize, encode, unchanged
    )
    return made_by(made, dorefa, bits)


def dorefa_activation(bits: int) -> Quantizer:
    """z -> q(clip(z, 0, 1)), on 2^k - 1 even steps; backward dz 1[0 <= z <= 1].

    Args:
        bits: k, 1 to 8.

    Returns:
        A `Quantizer` for activations, see `quantized.activation`.

    Raises:
        ValueError: bits out of range.

    Source: Zhou et al. 2016, arXiv:1606.06160, equation 11.

    Example:
        >>> from bilevel.quantized import activation
        >>> z = activation(dorefa_activation(2), jnp.array([0.4, 7.0]))
        >>> [round(float(one), 3) for one in z]
        [0.333, 1.0]
    """
    bits = _checked("dorefa_activation", bits, 1)
    steps = 2**bits - 1
    levels = number_formats.codebook(np.arange(steps + 1) / steps, f"unit{bits}")

    def place(z: jax.Array) -> jax.Array:
        return jnp.round(steps * jnp.clip(z, 0, 1))

    def quantize(latent: jax.Array, learned: Any, at: At) -> jax.Array:
        del learned, at
        is_inside = ((latent >= 0) & (latent <= 1)).astype(latent.dtype)
        return with_slope(place(latent) / steps, is_inside, latent)

    def encode(latent: jax.Array, learned: Any) -> Codes:
        del learned
        return Codes(place(latent).astype(jnp.uint8))

    made = Quantizer(
        "dorefa_activation", levels, as_they_are, nothing, quantize, encode, unchanged
    )
    return made_by(made, dorefa_activation, bits)


def _checked(name: str, bits: int, least: int) -> int:
    found = whole(f"{name}: bits", bits)
    if not least <= found <= 8:
        raise ValueError(f"{name}: bits must lie in [{least}, 8], got {bits}.")
    return found
