"""Integers: symmetric, affine and fixed point."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.known import known
from bilevel.number_formats.number_format import (
    MAX_LEVEL_BITS,
    NumberFormat,
    as_float,
    cast,
    whole,
)
from bilevel.number_formats.recipe import made_by
from bilevel.number_formats.scaled import scaled


def symmetric(bits: int, scale: Any = None) -> NumberFormat:
    """Integers around zero, without the one that has no opposite.

        x -> s clip(round(x (1 / s)), -(2^(n-1) - 1), 2^(n-1) - 1),   ties to even

    Args:
        bits: n, 2 to 24.
        scale: s, as in `scaled`; default 1.

    Returns:
        A `NumberFormat`; codes are signed integers. There is no NaN: `round` keeps it,
        and its code is that of 0.

    Raises:
        ValueError: bits out of range; a scale that is not positive and finite.

    Example:
        >>> int4 = symmetric(4, 0.5)
        >>> int4.encode(jnp.array([0.3, -9.0, 0.75])).tolist()
        [1, -7, 2]
        >>> int4.round(jnp.array([0.3, -9.0, 0.75])).tolist()
        [0.5, -3.5, 1.0]
    """
    bits = _checked("symmetric: bits", bits)
    top = 2 ** (bits - 1) - 1
    made = made_by(_integers(f"int{bits}", bits, (-top, top), 0), symmetric, bits)
    return made if scale is None else scaled(made, scale)


def affine(
    bits: int, scale: Any = None, zero_point: Any = 0, *, signed: bool = True
) -> NumberFormat:
    """All integers of n bits, with a zero point.

        q = clip(round(x (1 / s)) + z, least, greatest),   value s (q - z)

    Args:
        bits: n, 2 to 24.
        scale: s, as in `scaled`; default 1.
        zero_point: z, the code of 0, or an array of them, one for each channel.
        signed: codes from -2^(n-1) to 2^(n-1) - 1; otherwise from 0 to 2^n - 1.

    Returns:
        A `NumberFormat`; see `symmetric`.

    Raises:
        ValueError: bits out of range; a scale that is not positive and finite; a zero
            point that is no code.

    Source: Jacob et al. 2018, arXiv:1712.05877.

    Example:
        >>> uint8 = affine(8, 0.01, 100, signed=False)
        >>> uint8.encode(jnp.array([0.0, -2.0, 1.234])).tolist()
        [100, 0, 223]
    """
    bits = _checked("affine: bits", bits)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    point = known(zero_point)
    if point is not None:
        is_code = (point == np.round(point)) & (ends[0] <= point) & (point <= ends[1])
        if not np.all(is_code):
            raise ValueError(
                f"affine: zero_point must be an integer from {ends[0]} to {ends[1]}, "
                f"got {zero_point}."
            )
    kind = "affine" if signed else "unsigned"
    made = made_by(
        _integers(f"{kind}{bits}", bits, ends, zero_point),
        affine,
        bits,
        zero_point=zero_point,
        signed=signed,
    )
    return made if scale is None else scaled(made, scale)


def fixed_point(integer_bits: int, fraction_bits: int) -> NumberFormat:
    """Qm.n: m bits before and n behind the point, and a sign.

        x -> clip(round(x 2^n), -2^(m+n), 2^(m+n) - 1) / 2^n,   ties to even

    Args:
        integer_bits: m.
        fraction_bits: n; one of the two may be negative.

    Returns:
        A `NumberFormat` of 1 + m + n bits; codes are signed integers.

    Raises:
        ValueError: 1 + m + n out of [2, 24], or n out of [-100, 100].

    Example:
        >>> fixed_point(1, 6).range
        (-2.0, 1.984375)
    """
    m = whole("fixed_point: integer_bits", integer_bits)
    n = whole("fixed_point: fraction_bits", fraction_bits)
    _checked("fixed_point: 1 + integer_bits + fraction_bits", 1 + m + n)
    if abs(n) > 100:
        raise ValueError(f"fixed_point: fraction_bits must be in [-100, 100], got {n}.")
    ends = (-(2 ** (m + n)), 2 ** (m + n) - 1)
    made = scaled(_integers("integers", 1 + m + n, ends, 0), 2.0**-n)
    return made_by(made._replace(name=f"Q{m}.{n}"), fixed_point, m, n)


def _checked(name: str, bits: Any) -> int:
    found = whole(name, bits)
    if not 2 <= found <= 24:
        raise ValueError(
            f"{name} must lie in [2, 24], got {found}; of one bit there is binary()."
        )
    return found


def _integers(
    name: str, bits: int, ends: tuple[int, int], zero_point: Any
) -> NumberFormat:
    """The integers q - z for codes q between the ends."""
    least, greatest = ends
    sizes = ((8, "int8"), (16, "int16"), (32, "int32"))
    size = next(own for most, own in sizes if bits <= most)
    dtype = jnp.dtype(size if least < 0 else f"u{size}")

    def codes_of(x: jax.Array) -> jax.Array:
        """As floats; NaN stays."""
        x = as_float(name, x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.clip(
            jnp.round(x) + jnp.asarray(zero_point, x.dtype), least, greatest
        )

    def encode(x: jax.Array) -> jax.Array:
        found = codes_of(x)
        none = jnp.asarray(zero_point, found.dtype)
        return jnp.where(jnp.isnan(found), none, found).astype(jnp.int32).astype(dtype)

    def decode(codes: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        whole = codes.astype(jnp.int32) - jnp.asarray(zero_point, jnp.int32)
        return cast(whole.astype(jnp.promote_types(dtype, jnp.float32)), dtype)

    def round_(x: jax.Array) -> jax.Array:
        found = codes_of(x)
        return cast(found - jnp.asarray(zero_point, found.dtype), x.dtype)

    def neighbour(codes: jax.Array, direction: jax.Array) -> jax.Array:
        moved = codes.astype(jnp.int32) + direction
        return jnp.clip(moved, least, greatest).astype(codes.dtype)

    def end(code: int) -> Any:
        point = known(zero_point)
        if point is None:
            return code - zero_point
        found = code - point.astype(np.float64)
        return float(found) if found.ndim == 0 else found

    def levels() -> np.ndarray:
        point = known(zero_point)
        if point is None:
            raise ValueError(f"{name}: the zero point is traced, and not known yet.")
        if bits > MAX_LEVEL_BITS:
            raise ValueError(
                f"{name} has {greatest - least + 1} levels; they are listed up to "
                f"{MAX_LEVEL_BITS} bits."
            )
        return np.arange(least, greatest + 1) - point.astype(np.float64)[..., None]

    return NumberFormat(
        name,
        bits,
        (end(least), end(greatest)),
        encode,
        decode,
        round_,
        neighbour,
        levels,
    )
