"""Minifloats: floats of few bits, with subnormals and the specials of ml_dtypes."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from bilevel.number_formats.floats import infinity, join, layout_of, quiet_nan, split
from bilevel.number_formats.number_format import (
    MAX_ANCHOR,
    NumberFormat,
    as_float,
    cast,
    code_dtype,
    listed,
    whole,
)
from bilevel.number_formats.recipe import made_by

Specials: TypeAlias = Literal["ieee", "fn", "fnuz", "finite"]
"""Which codes are no finite numbers.

    ieee    the greatest exponent: infinities and NaN
    fn      all ones: NaN; no infinities
    fnuz    the code of -0: NaN; no infinities, and no -0
    finite  none
"""

# name -> exponent bits, mantissa bits, specials, bias
_NAMED: dict[str, tuple[int, int, Specials, int | None]] = {
    "bfloat16": (8, 7, "ieee", None),
    "float16": (5, 10, "ieee", None),
    "float8_e3m4": (3, 4, "ieee", None),
    "float8_e4m3": (4, 3, "ieee", None),
    "float8_e4m3b11fnuz": (4, 3, "fnuz", 11),
    "float8_e4m3fn": (4, 3, "fn", None),
    "float8_e4m3fnuz": (4, 3, "fnuz", 8),
    "float8_e5m2": (5, 2, "ieee", None),
    "float8_e5m2fnuz": (5, 2, "fnuz", 16),
    "float6_e2m3fn": (2, 3, "finite", None),
    "float6_e3m2fn": (3, 2, "finite", None),
    "float4_e2m1fn": (2, 1, "finite", None),
}
MINIFLOATS = tuple(_NAMED)


def of_ml_dtypes(which: str, *, saturating: bool = False) -> NumberFormat:
    """A minifloat by its name in ml_dtypes; see `minifloat`.

    Args:
        which: one of `MINIFLOATS`: bfloat16, float16, float8_e4m3fn, ...
        saturating: as in `minifloat`.

    Raises:
        ValueError: there is none of this name.

    Example:
        >>> of_ml_dtypes("float8_e4m3fn").range
        (-448.0, 448.0)
    """
    if which not in _NAMED:
        raise ValueError(
            f"there is no minifloat {which!r}; there are {', '.join(MINIFLOATS)}, or "
            "make one with minifloat(exponent_bits, mantissa_bits)."
        )
    exponent_bits, mantissa_bits, specials, bias = _NAMED[which]
    made = minifloat(
        exponent_bits, mantissa_bits, specials, bias=bias, saturating=saturating
    )
    return made_by(
        made._replace(name=which), of_ml_dtypes, which, saturating=saturating
    )


def minifloat(
    exponent_bits: int,
    mantissa_bits: int,
    specials: Specials = "ieee",
    *,
    bias: int | None = None,
    saturating: bool = False,
) -> NumberFormat:
    """A float with e bits of exponent E and m bits of mantissa M.

        (-1)^sign 2^(E - bias) (1 + M / 2^m);   for E = 0 (-1)^sign 2^(1 - bias) M / 2^m

    Rounding is to nearest, ties to the even code, as if the exponent had no end; then
    what lies beyond the greatest number is an infinity, NaN where there are none, or
    the greatest number where there is neither.

    Args:
        exponent_bits: e, 1 to 8.
        mantissa_bits: m, 0 to 10.
        specials: what is no finite number; see `Specials`.
        bias: of the exponent; default 2^(e - 1) - 1.
        saturating: what lies beyond, infinities too, becomes the greatest number; NaN
            stays what it is.

    Returns:
        A `NumberFormat` of 1 + e + m bits; the sign is the first. Codes are those of
        ml_dtypes. It is integer arithmetic on the bits of the float.

    Raises:
        ValueError: an argument out of range; no finite level but 0; levels that
            float32 does not have.

    Source: IEEE 754; Micikevicius et al. 2022, arXiv:2209.05433 (fn); Noune et al.
    2022, arXiv:2206.02915 (fnuz).

    Example:
        >>> e4m3 = minifloat(4, 3, "fn")
        >>> e4m3.round(jnp.array([0.3, 448.0, 470.0, 1e-3])).tolist()
        [0.3125, 448.0, nan, 0.001953125]
    """
    e = whole("minifloat: exponent_bits", exponent_bits)
    m = whole("minifloat: mantissa_bits", mantissa_bits)
    bias = None if bias is None else whole("minifloat: bias", bias)
    own_bias = 2 ** (e - 1) - 1 if bias is None else bias
    _check(e, m, specials, own_bias)
    size, one = 1 << (e + m), 1 << m
    greatest = _greatest(e, m, specials)
    # Magnitudes as codes; that of fnuz is the code of -0.
    nan = {"ieee": size - one // 2, "fn": size - 1, "fnuz": size, "finite": 0}[specials]
    over = {"ieee": size - one, "finite": greatest}.get(specials, nan)
    over = greatest if saturating else over
    least = 1 - own_bias  # the exponent of the least normal number
    name = f"minifloat<{e},{m},{specials}>"

    def encode(x: jax.Array) -> jax.Array:
        negative, magnitude, layout = split(as_float(name, x))
        exponent = magnitude >> layout.mantissa
        fraction = magnitude & ((1 << layout.mantissa) - 1)
        is_normal = exponent > 0
        significand = fraction | (is_normal.astype(fraction.dtype) << layout.mantissa)
        above = jnp.where(is_normal, exponent, 1) - (layout.bias + least)
        drop = layout.mantissa - m + jnp.maximum(-above, 0)
        drop = jnp.minimum(drop, layout.mantissa + 2)
        start = jnp.maximum(above, 0) << m
        last = ((significand >> drop) + start) & 1
        half = (jnp.ones_like(drop) << drop) >> 1
        code = ((significand + half - 1 + last) >> drop) + start
        code = jnp.where(code > greatest, over, code)
        code = jnp.where(magnitude == infinity(layout), over, code)
        code = jnp.where(magnitude > infinity(layout), nan, code)
        if specials == "finite":  # what ml_dtypes makes of a NaN is a zero
            negative = negative ^ (magnitude > infinity(layout))
        sign = negative.astype(code.dtype) << (e + m)
        if specials == "fnuz":
            sign = jnp.where(code % size == 0, 0, sign)
        return (code | sign).astype(code_dtype(1 + e + m))

    def decode(codes: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        layout = layout_of(dtype)
        wide = codes.astype(layout.ints)
        code, negative = wide & (size - 1), (wide & size) != 0
        found = code << (layout.mantissa - m)
        found = found + ((layout.bias - own_bias) << layout.mantissa)
        if layout.bias != own_bias:
            small = code.astype(layout.floats) * 2.0 ** (least - m)
            bits = jax.lax.bitcast_convert_type(small, layout.ints)
            found = jnp.where(code < one, bits, found)
        is_nan = code > greatest
        if specials == "ieee":
            found = jnp.where(code == size - one, infinity(layout), found)
            is_nan = code > size - one
        if specials == "fnuz":
            is_nan = wide == size
            negative = negative & ~is_nan
        found = jnp.where(is_nan, quiet_nan(layout), found)
        return cast(join(negative, found, layout), dtype)

    def round_(x: jax.Array) -> jax.Array:
        return decode(encode(x), x.dtype)

    def neighbour(codes: jax.Array, direction: jax.Array) -> jax.Array:
        wide = codes.astype(jnp.int32)
        code, negative = wide & (size - 1), (wide & size) != 0
        signed = jnp.where(negative, -code, code)
        moved = jnp.clip(signed + direction, -greatest, greatest)
        new = jnp.where(moved < 0, size - moved, moved)
        is_number = (code <= greatest) & ~((specials == "fnuz") & (wide == size))
        return jnp.where(is_number & (direction != 0), new, wide).astype(codes.dtype)

    exponent, mantissa = divmod(greatest, one)
    top = 2.0 ** max(exponent - own_bias, least) * ((exponent > 0) + mantissa / one)
    made = NumberFormat(
        name=name,
        bits=1 + e + m,
        range=(-top, top),
        encode=encode,
        decode=decode,
        round=round_,
        neighbour=neighbour,
        levels=lambda: listed(name, 1 + e + m, decode),
        anchor=min(top, MAX_ANCHOR),
    )
    return made_by(made, minifloat, e, m, specials, bias=bias, saturating=saturating)


def _greatest(e: int, m: int, specials: Specials) -> int:
    """The code of the greatest finite number."""
    size = 1 << (e + m)
    return size - {"ieee": (1 << m) + 1, "fn": 2, "fnuz": 1, "finite": 1}[specials]


def _check(e: int, m: int, specials: Specials, bias: int) -> None:
    if not (1 <= e <= 8 and 0 <= m <= 10):
        raise ValueError(
            "minifloat: expected exponent_bits in [1, 8] and mantissa_bits in [0, 10], "
            f"got {e} and {m}."
        )
    if specials not in get_args(Specials):
        raise ValueError(
            f"minifloat: specials must be one of {', '.join(get_args(Specials))}, got "
            f"{specials!r}."
        )
    if specials == "ieee" and (m == 0 or e == 1):
        raise ValueError(
            "minifloat: infinity and NaN need a mantissa, and an exponent of their "
            f'own, got {e} and {m} bits; take "fn" or "finite".'
        )
    greatest = _greatest(e, m, specials)
    if greatest < 1:
        raise ValueError(
            f"minifloat({e}, {m}, {specials!r}) has no number but 0; take more bits."
        )
    least = 1 - bias
    if (greatest >> m) - bias > 127 or (least - m < -126 and least != -126):
        raise ValueError(
            f"minifloat({e}, {m}) with bias {bias} has numbers that float32 has not; "
            f"expected a bias of {(greatest >> m) - 127} to {127 - m}."
        )
