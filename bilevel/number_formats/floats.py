"""Floats as integers: XLA on CPU flushes subnormals, integers stay what they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
    """Where the parts of a float are.

    Attributes:
        floats: the dtype.
        ints: signed integers of the same size.
        mantissa: its bits.
        bias: of the exponent.
    """

    floats: Any
    ints: Any
    mantissa: int
    bias: int


SINGLE = Layout(jnp.float32, jnp.int32, 23, 127)
DOUBLE = Layout(jnp.float64, jnp.int64, 52, 1023)


def layout_of(dtype: Any) -> Layout:
    """That in which floats of a dtype are worked on: float64, or else float32."""
    return DOUBLE if jnp.dtype(dtype) == jnp.float64 else SINGLE


def split(x: jax.Array) -> tuple[jax.Array, jax.Array, Layout]:
    """Sign (bool) and magnitude (exponent and mantissa as one integer) of floats."""
    layout = layout_of(x.dtype)
    wide = jax.lax.bitcast_convert_type(x.astype(layout.floats), layout.ints)
    magnitude = wide & jnp.iinfo(layout.ints).max
    return wide < 0, magnitude, layout


def join(negative: jax.Array, magnitude: jax.Array, layout: Layout) -> jax.Array:
    """The floats of a sign and a magnitude."""
    sign = jnp.where(negative, jnp.iinfo(layout.ints).min, 0).astype(layout.ints)
    return jax.lax.bitcast_convert_type(magnitude | sign, layout.floats)


def normal(x: jax.Array) -> jax.Array:
    """Subnormals as the least normal number of their sign: comparisons flush them."""
    negative, magnitude, layout = split(x)
    least = 1 << layout.mantissa
    is_small = (magnitude > 0) & (magnitude < least)
    return join(negative, jnp.where(is_small, least, magnitude), layout)


def power_below(x: jax.Array) -> jax.Array:
    """The greatest power of two up to a magnitude, with its sign; 0 of subnormals."""
    negative, magnitude, layout = split(x)
    power = (magnitude >> layout.mantissa) << layout.mantissa
    return join(negative, power, layout).astype(x.dtype)


def quiet_nan(layout: Layout) -> int:
    """The magnitude of the usual NaN."""
    return infinity(layout) + (1 << (layout.mantissa - 1))


def infinity(layout: Layout) -> int:
    """The magnitude of infinity; what is greater is not a number."""
    return (2 * layout.bias + 1) << layout.mantissa
