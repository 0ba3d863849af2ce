"""Minifloats against ml_dtypes, bit by bit, and against their definition."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bilevel import number_formats

NAMES = number_formats.MINIFLOATS


def dtype_of(name):
    return np.float16 if name == "float16" else getattr(ml_dtypes, name)


def hard_cases(levels):
    """Levels, the midpoints and what lies next to them, specials, and any bits."""
    middle = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    beyond = levels[-1] + (levels[-1] - levels[-2]) * np.array([0.49, 0.5, 0.51, 1, 9])
    drawn = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    special = [np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38]
    up, down = np.float32(np.inf), np.float32(-np.inf)
    with np.errstate(over="ignore"):
        parts = [levels, middle, np.nextafter(middle, up), np.nextafter(middle, down)]
        parts += [beyond, -beyond, drawn.view(np.float32), np.array(special)]
        return np.concatenate([part.astype(np.float32) for part in parts])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.thinned(3)
def test_is_that_of_ml_dtypes(name):
    fmt, dtype = number_formats.by_name(name), dtype_of(name)
    size = np.uint8 if fmt.bits <= 8 else np.uint16
    codes = np.arange(2**fmt.bits).astype(size)
    decoded = np.asarray(fmt.decode(jnp.asarray(codes)))
    expected = codes.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(decoded, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(
        np.signbit(decoded)[numbers], np.signbit(expected)[numbers]
    )
    finite = expected[np.isfinite(expected)]
    np.testing.assert_array_equal(fmt.levels(), np.unique(finite))
    assert fmt.range == (finite.min(), finite.max())
    x = hard_cases(fmt.levels())
    with np.errstate(all="ignore"):
        expected = x.astype(dtype).view(size)
    if name == "float16":  # NumPy keeps more of a NaN's bits
        x, expected = x[~np.isnan(x)], expected[~np.isnan(x)]
    found, rounded, again = jax.jit(
        lambda x: (fmt.encode(x), fmt.round(x), fmt.decode(fmt.encode(x)))
    )(x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(rounded, again)


@pytest.mark.parametrize(
    ("exponent_bits", "mantissa_bits", "specials", "bias"),
    [
        (2, 5, "fn", None),
        (5, 0, "finite", None),
        (8, 3, "ieee", None),
        (1, 6, "fn", 1),
        (4, 3, "finite", -3),
        (6, 1, "fnuz", 40),
        (3, 10, "fn", 3),
    ],
)
def test_any_split_is_its_definition(exponent_bits, mantissa_bits, specials, bias):
    fmt = number_formats.minifloat(exponent_bits, mantissa_bits, specials, bias=bias)
    bias = 2 ** (exponent_bits - 1) - 1 if bias is None else bias
    size, one = 1 << (exponent_bits + mantissa_bits), 1 << mantissa_bits
    decode = jax.jit(lambda codes: fmt.decode(codes, jnp.float64))
    found = np.asarray(decode(jnp.arange(2 * size, dtype=jnp.uint32)))
    code = np.arange(size)
    exponent, mantissa = code // one, code % one
    normal = 2.0 ** (exponent - bias) * (1 + mantissa / one)
    expected = np.where(exponent > 0, normal, 2.0 ** (1 - bias) * mantissa / one)
    numbers = np.isfinite(found[:size])
    np.testing.assert_array_equal(found[:size][numbers], expected[numbers])
    assert (
        numbers.sum() == size - {"ieee": one, "fn": 1, "fnuz": 0, "finite": 0}[specials]
    )
    np.testing.assert_array_equal(found[size + 1 :], -found[1:size])
    assert np.isnan(found[size]) == (specials == "fnuz")
    # To the nearest, ties to even, in float64, too.
    levels = expected[numbers]
    middle = (levels[1:] + levels[:-1]) / 2
    even = np.arange(len(middle)) + np.arange(len(middle)) % 2
    below, above = np.nextafter(middle, 0), np.nextafter(middle, np.inf)
    lower = np.arange(len(middle))
    found = jax.jit(fmt.round)(np.stack([middle, below, above]))
    np.testing.assert_array_equal(found, levels[np.stack([even, lower, lower + 1])])


def test_saturation():
    x = jnp.array([464.0, -1e30, np.inf, np.nan])
    plain = number_formats.minifloat(4, 3, "fn").round(x)
    np.testing.assert_array_equal(plain, [448, np.nan, np.nan, np.nan])
    full = number_formats.minifloat(4, 3, "fn", saturating=True).round(x)
    np.testing.assert_array_equal(full, [448, -448, 448, np.nan])
    ieee = number_formats.by_name("float8_e5m2", saturating=True)
    np.testing.assert_array_equal(ieee.round(x[1:3]), [-57344, 57344])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 3), {}, r"exponent_bits in \[1, 8\] .* got 0 and 3"),
        ((9, 3), {}, "got 9 and 3"),
        ((4, 11), {}, "got 4 and 11"),
        ((4, 3, "none"), {}, "specials must be one of ieee, fn, fnuz, finite"),
        ((5, 0, "ieee"), {}, "infinity and NaN need a mantissa"),
        ((1, 0, "fn"), {}, "no number but 0"),
        ((8, 3, "fn"), {}, "numbers that float32 has not"),
        ((4, 3), {"bias": 150}, "numbers that float32 has not"),
    ],
)
def test_what_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        number_formats.minifloat(*arguments, **options)
