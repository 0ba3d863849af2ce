"""Powers of two without a sign: the scales of microscaling formats."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.number_formats.floats import infinity, join, layout_of, quiet_nan, split
from bilevel.number_formats.number_format import (
    MAX_ANCHOR,
    NumberFormat,
    as_float,
    cast,
    code_dtype,
)
from bilevel.number_formats.recipe import made_by

_NAN = 255


def power_of_two() -> NumberFormat:
    """float8_e8m0fnu of ml_dtypes: 2^(code - 127), code 0 to 254; 255 is NaN.

    There is no zero and no sign: 0, negative numbers, infinities, NaN and what rounds
    to 2^128 become NaN. Ties go up, and what is below 2^-127 becomes it.

    Returns:
        A `NumberFormat` of 8 bits.

    Source: Rouhani et al. 2023, arXiv:2310.10537 (microscaling).

    Example:
        >>> power_of_two().round(jnp.array([1.4, 1.5, 3.0])).tolist()
        [1.0, 2.0, 4.0]
    """
    name = "float8_e8m0fnu"

    def encode(x: jax.Array) -> jax.Array:
        negative, magnitude, layout = split(as_float(name, x))
        half = 1 << (layout.mantissa - 1)
        code = ((magnitude + half) >> layout.mantissa) - (layout.bias - 127)
        code = jnp.maximum(code, 0)
        is_nan = negative | (magnitude == 0) | (magnitude >= infinity(layout))
        return jnp.where(is_nan | (code > 254), _NAN, code).astype(code_dtype(8))

    def decode(codes: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        layout = layout_of(dtype)
        exponent = codes.astype(layout.ints) + (layout.bias - 127)
        magnitude = exponent << layout.mantissa
        # 2^-127 is a subnormal of float32.
        least = jnp.ones_like(magnitude) << (layout.mantissa - 1)
        magnitude = jnp.where(exponent == 0, least, magnitude)
        magnitude = jnp.where(codes == _NAN, quiet_nan(layout), magnitude)
        return cast(join(jnp.zeros_like(magnitude, bool), magnitude, layout), dtype)

    def round_(x: jax.Array) -> jax.Array:
        return decode(encode(x), x.dtype)

    def neighbour(codes: jax.Array, direction: jax.Array) -> jax.Array:
        moved = jnp.clip(codes.astype(jnp.int32) + direction, 0, 254)
        return jnp.where(codes == _NAN, _NAN, moved).astype(codes.dtype)

    made = NumberFormat(
        name=name,
        bits=8,
        range=(2.0**-127, 2.0**127),
        encode=encode,
        decode=decode,
        round=round_,
        neighbour=neighbour,
        levels=lambda: 2.0 ** np.arange(-127, 128),
        anchor=MAX_ANCHOR,
    )
    return made_by(made, power_of_two)
