"""Levels by hand: codebooks, binary and ternary numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.known import known
from bilevel.number_formats.floats import normal
from bilevel.number_formats.number_format import (
    NumberFormat,
    as_float,
    cast,
    code_dtype,
)
from bilevel.number_formats.recipe import made_by
from bilevel.number_formats.scaled import scaled


def codebook(levels: Any, name: str = "codebook") -> NumberFormat:
    """Any levels; a number goes to the nearest one, thresholds are the midpoints.

    Ties go to every other level: to 0 where it is one of the two, as for integers.

    Args:
        levels: `[n]`, ascending, at least two; may be traced, to be learned.
        name: of the format.

    Returns:
        A `NumberFormat`; the code is the place in `levels`. `round` keeps NaN, which
        has no code: it gets that of the level nearest to 0.

    Raises:
        ValueError: less than two levels, or levels that do not ascend, are no numbers,
            or not finite.

    Example:
        >>> four = codebook([-1.0, -0.25, 0.25, 1.0])
        >>> four.round(jnp.array([-0.7, 0.1, 9.0])).tolist()
        [-1.0, 0.25, 1.0]
    """
    given = known(levels)
    count = np.shape(levels)[0] if np.ndim(levels) == 1 else 0
    if count < 2:
        raise ValueError(
            f"{name}: expected at least two levels, in one axis, got the shape "
            f"{np.shape(levels)}."
        )
    first = 0
    if given is not None:
        given = given.astype(np.float64)
        if not (np.all(np.isfinite(given)) and np.all(np.diff(given) > 0)):
            raise ValueError(
                f"{name}: levels must be finite and ascend, each once, got "
                f"{given.tolist()}."
            )
        first = int(np.argmin(np.abs(given)))
    bits = max(int(np.ceil(np.log2(count))), 1)
    method = "compare_all" if count <= 16 else "scan"

    def place(x: jax.Array) -> jax.Array:
        x = normal(x)
        own = jnp.asarray(levels, x.dtype)
        # Halves first: the sum of two may be beyond the greatest number.
        middle = own[1:] / 2 + own[:-1] / 2
        low = jnp.searchsorted(middle, x, side="left", method=method)
        high = jnp.searchsorted(middle, x, side="right", method=method)
        return jnp.where((low - first) % 2 == 0, low, high)

    def encode(x: jax.Array) -> jax.Array:
        x = as_float(name, x)
        code = jnp.where(jnp.isnan(x), first, place(x))
        return code.astype(code_dtype(bits))

    def decode(codes: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        wide = jnp.promote_types(dtype, jnp.float32)
        return cast(jnp.asarray(levels, wide), dtype)[codes.astype(jnp.int32)]

    def round_(x: jax.Array) -> jax.Array:
        x = as_float(name, x)
        return jnp.where(jnp.isnan(x), x, decode(encode(x), x.dtype))

    def neighbour(codes: jax.Array, direction: jax.Array) -> jax.Array:
        moved = codes.astype(jnp.int32) + direction
        return jnp.clip(moved, 0, count - 1).astype(codes.dtype)

    def listed() -> np.ndarray:
        if given is None:
            raise ValueError(f"{name}: the levels are traced, and not known yet.")
        return given.copy()

    ends = levels[0], levels[-1]
    if given is not None:
        ends = float(given[0]), float(given[-1])
    made = NumberFormat(name, bits, ends, encode, decode, round_, neighbour, listed)
    return made_by(made, codebook, levels, name)


def binary(scale: Any = None) -> NumberFormat:
    """{-a, a}, by sign; the sign of 0 is +.

    Args:
        scale: a, as in `scaled`; default 1.

    Example:
        >>> binary(0.5).round(jnp.array([0.3, 0.0, -2.0])).tolist()
        [0.5, 0.5, -0.5]
    """

    def is_negative(x: jax.Array) -> jax.Array:
        return normal(as_float("binary", x)) < 0

    def encode(x: jax.Array) -> jax.Array:
        return (~is_negative(x)).astype(jnp.uint8)

    def round_(x: jax.Array) -> jax.Array:
        sign = jnp.where(is_negative(x), -1, 1).astype(x.dtype)
        return jnp.where(jnp.isnan(x), x, sign)

    made = codebook([-1.0, 1.0], "binary")._replace(encode=encode, round=round_)
    made = made_by(made, binary)
    return made if scale is None else scaled(made, scale)


def ternary(scale: Any = None) -> NumberFormat:
    """{-a, 0, a}; the thresholds are -a / 2 and a / 2, which belong to 0.

    Args:
        scale: a, as in `scaled`; default 1.

    Example:
        >>> ternary(2.0).round(jnp.array([1.0, 1.1, -5.0])).tolist()
        [0.0, 2.0, -2.0]
    """
    made = made_by(codebook([-1.0, 0.0, 1.0], "ternary"), ternary)
    return made if scale is None else scaled(made, scale)
