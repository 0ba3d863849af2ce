"""Posits: a run of bits, the regime, trades precision far from 1 for range."""

import jax
import jax.numpy as jnp

from bilevel.number_formats.floats import (
    Layout,
    infinity,
    join,
    layout_of,
    quiet_nan,
    split,
)
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


def posit(bits: int, exponent_bits: int) -> NumberFormat:
    """posit<n, es>: sign, regime, es bits of exponent, fraction.

        (-1)^sign 2^(k 2^es + e) (1 + f)

    The regime is a run of equal bits that ends with the other one: r ones make k = r -
    1, r zeros k = -r. Exponent bits that do not fit are 0. A negative number is the
    two's complement of its opposite. There are 0 and NaR (not a real: pattern 10...0),
    and no infinities. The standard of 2022 has es = 2.

    Rounding is to the nearest *pattern*, ties to even: the threshold between two
    patterns is the posit with one bit more between them. Where the exponent is cut off
    that is a geometric mean, so that it is not nearest in value. Nothing but 0 becomes
    0: what is smaller than the least posit becomes it, and what is greater than the
    greatest becomes that. Infinities and NaN become NaR, which decodes as NaN. In a
    dtype that lacks the greatest posits, float16 say, they are its greatest number.

    Args:
        bits: n, 3 to 24.
        exponent_bits: es, 0 to n - 3.

    Returns:
        A `NumberFormat`. `round` is integer arithmetic on the bits of the float, exact
        for subnormals.

    Raises:
        ValueError: n or es out of range; levels beyond those of float32, (n - 2) 2^es >
            126.

    Source: Posit Working Group 2022, "Standard for Posit Arithmetic"; Gustafson and
    Yonemoto 2017.

    Example:
        >>> posit8 = posit(8, 2)
        >>> posit8.encode(jnp.array([1.0, 0.3, -2.5])).tolist()
        [64, 50, 182]
        >>> posit8.round(jnp.array([0.3, 1e30])).tolist() == [0.3125, 2.0**24]
        True
    """
    n = whole("posit: bits", bits)
    es = whole("posit: exponent_bits", exponent_bits)
    if not 3 <= n <= 24:
        raise ValueError(f"posit: bits must lie in [3, 24], got {n}.")
    if not 0 <= es <= n - 3:
        raise ValueError(
            f"posit: exponent_bits must lie in [0, bits - 3 = {n - 3}], got {es}: with "
            "more not even the numbers next to 1 have room for their exponent."
        )
    if (n - 2) << es > 126:
        raise ValueError(
            f"posit<{n},{es}> reaches 2^{(n - 2) << es}, beyond float32; take fewer "
            "exponent_bits or bits."
        )
    name, top = f"posit<{n},{es}>", (n - 2) << es
    nar = 1 << (n - 1)

    def encode(x: jax.Array) -> jax.Array:
        negative, magnitude, layout = split(as_float(name, x))
        power = _rounded(magnitude, layout, n, es)
        tail_bits = layout.mantissa + es
        k = power >> tail_bits
        length = jnp.where(k < 0, 1 - k, k + 2)
        room = n - 1 - length  # of exponent and fraction; -1 where the regime ends it
        one = jnp.ones_like(k)
        regime = jnp.where(k < 0, one, (one << length) - 2)
        tail = power & ((1 << tail_bits) - 1)
        kept = jnp.maximum(room, 0)
        body = ((regime << kept) >> (room < 0)) | (tail >> (tail_bits - kept))
        code = jnp.where(negative, -body, body) & (2 * nar - 1)
        code = jnp.where(magnitude == 0, 0, code)
        code = jnp.where(magnitude >= infinity(layout), nar, code)
        return code.astype(code_dtype(n))

    def round_(x: jax.Array) -> jax.Array:
        x = as_float(name, x)
        negative, magnitude, layout = split(x)
        power = _rounded(magnitude, layout, n, es)
        found = power + (layout.bias << layout.mantissa)
        found = jnp.where(magnitude == 0, 0, found)
        found = jnp.where(magnitude >= infinity(layout), quiet_nan(layout), found)
        return cast(join(negative & (magnitude != 0), found, layout), x.dtype)

    def decode(codes: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        layout = layout_of(dtype)
        code = codes.astype(jnp.int32)
        negative = (code & nar) != 0
        body = jnp.where(negative, -code, code) & (nar - 1)
        left = body.astype(jnp.uint32) << (33 - n)  # its first bit is the topmost
        is_ones = (left >> 31) == 1
        run = jax.lax.clz(jnp.where(is_ones, ~left, left)).astype(jnp.int32)
        run = jnp.minimum(run, n - 1)
        k = jnp.where(is_ones, run - 1, -run)
        rest = left << run.astype(jnp.uint32) << 1  # behind the bit that ends it
        e = (rest >> (32 - es)).astype(jnp.int32) if es else jnp.zeros_like(k)
        fraction = (rest << es) >> (32 - 23)
        exponent = (k << es) + e + layout.bias
        wide = fraction.astype(layout.ints) << (layout.mantissa - 23)
        found = (exponent.astype(layout.ints) << layout.mantissa) | wide
        found = jnp.where(code == 0, 0, found)
        is_nar = code == nar
        found = jnp.where(is_nar, quiet_nan(layout), found)
        return cast(join(negative & ~is_nar, found, layout), dtype)

    def neighbour(codes: jax.Array, direction: jax.Array) -> jax.Array:
        code = codes.astype(jnp.int32)
        signed = jnp.where(code >= nar, code - 2 * nar, code)
        moved = jnp.clip(signed + direction, 1 - nar, nar - 1)
        moved = jnp.where(code == nar, -nar, moved)
        return (moved & (2 * nar - 1)).astype(codes.dtype)

    made = NumberFormat(
        name=name,
        bits=n,
        range=(-(2.0**top), 2.0**top),
        encode=encode,
        decode=decode,
        round=round_,
        neighbour=neighbour,
        levels=lambda: listed(name, n, decode),
        anchor=min(2.0 ** (1 << es), MAX_ANCHOR),
    )
    return made_by(made, posit, n, es)


def _rounded(magnitude: jax.Array, layout: Layout, n: int, es: int) -> jax.Array:
    """(k 2^es + e + f) 2^mantissa of the posit that is nearest, as an integer.

    Regime, exponent and fraction are one number here, and the bits that are dropped
    are its last: rounding it is rounding the pattern.
    """
    tail_bits = layout.mantissa + es
    power = magnitude - (layout.bias << layout.mantissa)
    k = power >> tail_bits
    length = jnp.where(k < 0, 1 - k, k + 2)
    drop = jnp.clip(tail_bits - (n - 1 - length), 0, tail_bits)
    # The last bit that is kept: the regime's own, where nothing else is.
    last = jnp.where(drop == tail_bits, (k < 0).astype(k.dtype), (power >> drop) & 1)
    unit = jnp.ones_like(power) << drop
    rounded = (power + (unit >> 1) - 1 + last) & -unit
    limit = ((n - 2) << es) << layout.mantissa
    return jnp.clip(rounded, -limit, limit)
