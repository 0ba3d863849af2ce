"""Posits, pattern by pattern, against their definition in exact fractions."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import number_formats

SIZES = [
    (3, 0),
    (4, 1),
    (5, 2),
    (6, 3),
    (8, 0),
    (8, 1),
    (8, 2),
    (9, 4),
]
SIZES += [(16, 1), (16, 2), (24, 2)]
EXHAUSTIVE = [(n, es) for n, es in SIZES if n <= 10]


def value(pattern, n, es):
    """As the standard has it: bit by bit; None for NaR."""
    if pattern in (0, 1 << (n - 1)):
        return None if pattern else Fraction(0)
    negative = pattern >> (n - 1)
    pattern = (1 << n) - pattern if negative else pattern
    bits = [pattern >> i & 1 for i in range(n - 2, -1, -1)]
    run = 1
    while run < len(bits) and bits[run] == bits[0]:
        run += 1
    k = run - 1 if bits[0] else -run
    rest = bits[run + 1 :]
    e = sum(bit << (es - 1 - i) for i, bit in enumerate(rest[:es]))
    fraction = sum(Fraction(bit, 2 << i) for i, bit in enumerate(rest[es:]))
    found = Fraction(2) ** (k * 2**es + e) * (1 + fraction)
    return -found if negative else found


@functools.cache
def values(n, es):
    exact = [value(pattern, n, es) for pattern in range(1 << n)]
    return np.array([np.nan if one is None else float(one) for one in exact])


def around(thresholds, dtype):
    """Thresholds, and the floats next to them on both sides."""
    own = np.asarray(thresholds, dtype)
    return [own, np.nextafter(own, dtype(0)), np.nextafter(own, dtype(np.inf))]


@functools.partial(jax.jit, static_argnums=0)
def both(fmt, x):
    return fmt.encode(x), fmt.round(x)


@pytest.mark.parametrize(("n", "es"), EXHAUSTIVE)
@pytest.mark.thinned(3)
def test_every_pattern_decodes(n, es):
    fmt = number_formats.posit(n, es)
    codes = jnp.arange(1 << n, dtype=jnp.uint32)
    for dtype in (jnp.float32, jnp.float64):
        np.testing.assert_array_equal(fmt.decode(codes, dtype), values(n, es))
    levels = fmt.levels()
    np.testing.assert_array_equal(
        levels, np.sort(values(n, es)[~np.isnan(values(n, es))])
    )
    assert fmt.range == (levels[0], levels[-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "es"), SIZES)
def test_every_threshold_is_the_posit_between_and_ties_go_to_even(n, es, dtype):
    """That between the patterns U and U + 1 is the posit with one bit more, 2 U + 1."""
    fmt = number_formats.posit(n, es)
    top = (1 << (n - 1)) - 1  # of the positive patterns
    patterns = np.arange(1, top)
    if n > 10:  # some, and the ends, where the regime leaves no room
        drawn = np.random.default_rng(0).integers(1, top, 300)
        patterns = np.unique([*range(1, 40), *drawn, *range(top - 40, top)])
    thresholds = [float(value(2 * int(u) + 1, n + 1, es)) for u in patterns]
    ties, below, above = around(thresholds, dtype)
    expected = [patterns + patterns % 2, patterns, patterns + 1]
    x = np.concatenate([ties, below, above])
    codes = np.concatenate(expected)
    exact = np.array([float(value(int(code), n, es)) for code in codes])
    found, rounded = both(fmt, np.concatenate([x, -x]))
    np.testing.assert_array_equal(found, [*codes, *((1 << n) - codes)])
    np.testing.assert_array_equal(rounded, [*exact, *-exact])
    assert rounded.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "es"), [(8, 0), (8, 2), (16, 2), (24, 2), (6, 3)])
def test_nothing_becomes_zero_or_infinite(n, es, dtype):
    fmt, nar = number_formats.posit(n, es), 1 << (n - 1)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    cases = {
        0.0: 0,
        tiny: 1,
        -tiny: 2 * nar - 1,
        1e-40: 1,  # subnormal in float32
        float(np.finfo(dtype).max): nar - 1,
        -float(np.finfo(dtype).max): nar + 1,
        np.inf: nar,
        -np.inf: nar,
    }
    x = np.array([-0.0, *cases, np.nan], dtype)
    codes = [0, *cases.values(), nar]
    found, rounded = both(fmt, x)
    np.testing.assert_array_equal(found, codes)
    exact = [value(code, n, es) for code in codes]
    exact = [np.nan if one is None else float(one) for one in exact]
    np.testing.assert_array_equal(rounded, exact)
    assert not np.signbit(rounded[:2]).any()


def test_known_codes():
    """Of softposit 0.3.4 for es = 0 at 8 bits and 1 at 16; of the standard's for 2."""
    x = jnp.array([1, -1, 0.5, 0.3, np.pi, -2.5, 100, 1e-3, -1e-9, 1e30, np.inf])
    expected = {
        (8, 0): [64, 192, 32, 19, 105, 156, 127, 1, 255, 127, 128],
        (8, 1): [64, 192, 48, 35, 89, 172, 121, 2, 255, 127, 128],
        (8, 2): [64, 192, 56, 50, 77, 182, 106, 12, 255, 127, 128],
    }
    for (n, es), codes in expected.items():
        assert number_formats.posit(n, es).encode(x).tolist() == codes
    some = {(16, 1): [9011, 22818, 44032, 31008], (16, 2): [12698, 19601, 46592, 27200]}
    for (n, es), codes in some.items():
        found = number_formats.posit(n, es).encode(jnp.array([0.3, np.pi, -2.5, 100]))
        assert found.tolist() == codes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_are_rounded_as_they_are(dtype):
    patterns = jnp.arange(2**16, dtype=jnp.uint16)
    x = jax.lax.bitcast_convert_type(patterns, dtype)
    fmt = number_formats.posit(8, 1)
    np.testing.assert_array_equal(fmt.encode(x), fmt.encode(x.astype(jnp.float32)))
    assert fmt.round(x).dtype == dtype


@pytest.mark.parametrize(
    ("n", "es", "message"),
    [
        (2, 0, r"bits must lie in \[3, 24\], got 2"),
        (25, 2, r"bits must lie in \[3, 24\], got 25"),
        (8, 6, r"exponent_bits must lie in \[0, bits - 3 = 5\], got 6"),
        (8, -1, "got -1"),
        (16, 4, r"posit<16,4> reaches 2\^224, beyond float32"),
    ],
)
def test_what_is_refused(n, es, message):
    with pytest.raises(ValueError, match=message):
        number_formats.posit(n, es)
