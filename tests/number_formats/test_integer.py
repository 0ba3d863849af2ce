"""Symmetric, affine and fixed-point integers, against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import number_formats

X = np.concatenate([np.linspace(-3, 3, 1201), [1e9, -1e9, 1e-40, 0.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("bits", "scale"), [(2, 1.0), (4, 0.25), (8, 0.02), (16, 1e-4)]
)
def test_symmetric(bits, scale, dtype):
    fmt, top = number_formats.symmetric(bits, scale), 2 ** (bits - 1) - 1
    x = X.astype(dtype)
    expected = np.clip(np.round(x * (1 / dtype(scale))), -top, top)
    codes, rounded = jax.jit(lambda x: (fmt.encode(x), fmt.round(x)))(x)
    assert codes.dtype == (np.int8 if bits <= 8 else np.int16)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(rounded, dtype(scale) * expected)
    np.testing.assert_array_equal(fmt.decode(codes, dtype), rounded)
    levels = scale * np.arange(-top, top + 1)
    np.testing.assert_allclose(fmt.levels(), levels, rtol=1e-15)
    np.testing.assert_array_equal(fmt.encode(jnp.asarray(x)), codes)  # not compiled


@pytest.mark.parametrize(
    ("signed", "zero_point"), [(True, -128), (True, 3), (False, 7)]
)
def test_affine(signed, zero_point):
    fmt = number_formats.affine(8, 0.02, zero_point, signed=signed)
    x, ends = X.astype(np.float32), (-128, 127) if signed else (0, 255)
    expected = np.round(x * (1 / np.float32(0.02))) + zero_point
    expected = np.clip(expected, *ends)
    codes, rounded = jax.jit(lambda x: (fmt.encode(x), fmt.round(x)))(x)
    assert codes.dtype == (np.int8 if signed else np.uint8)
    np.testing.assert_array_equal(codes, expected)
    values = np.float32(0.02) * (expected - zero_point).astype(np.float32)
    np.testing.assert_array_equal(rounded, values)
    assert fmt.round(jnp.zeros(1)) == 0  # as padding wants it
    ends = 0.02 * (np.array(ends) - zero_point)
    np.testing.assert_allclose(fmt.range, ends, rtol=1e-12)


def test_ties_go_to_even_before_the_zero_point_is_added():
    fmt = number_formats.affine(8, 1.0, 1)
    assert fmt.encode(jnp.array([0.5, 1.5, 2.5, -0.5])).tolist() == [1, 3, 3, 1]


@pytest.mark.parametrize(("m", "n"), [(1, 6), (0, 3), (3, 12), (-2, 9), (9, -2)])
def test_fixed_point(m, n):
    fmt = number_formats.fixed_point(m, n)
    assert (fmt.bits, fmt.name) == (1 + m + n, f"Q{m}.{n}")
    x = 2.0**m * X
    ends = -(2.0 ** (m + n)), 2.0 ** (m + n) - 1
    expected = np.clip(np.round(x * 2.0**n), *ends) / 2.0**n
    np.testing.assert_array_equal(jax.jit(fmt.round)(x), expected)
    assert fmt.range == (ends[0] / 2.0**n, ends[1] / 2.0**n)


def test_a_scale_for_each_channel():
    scales = np.array([[0.1, 1.0, 3.0]])
    x = np.random.default_rng(0).normal(size=(5, 3))
    fmt = number_formats.symmetric(4, scales)
    by_column = [
        number_formats.symmetric(4, float(s)).round(jnp.asarray(column))
        for s, column in zip(scales[0], x.T, strict=True)
    ]
    np.testing.assert_array_equal(fmt.round(jnp.asarray(x)), np.stack(by_column, 1))
    assert fmt.levels().shape == (1, 3, 15)
    np.testing.assert_allclose(fmt.range[1], 7 * scales)
    points = number_formats.affine(4, scales, np.array([[0, 2, -3]]))
    np.testing.assert_array_equal(points.round(jnp.zeros((2, 3))), 0)


def test_a_scale_that_is_learned():
    def error(scale):
        fmt = number_formats.symmetric(4, scale)
        with pytest.raises(ValueError, match="the scale is traced"):
            fmt.levels()
        return jnp.sum(fmt.round(jnp.ones(3)))

    assert jax.jit(error)(0.5) == 3.0
    assert jax.grad(error)(0.5) == 6.0  # of s q at the code q = 2


def test_nan_stays_and_has_the_code_of_zero():
    for fmt in (number_formats.symmetric(8, 0.1), number_formats.affine(8, 0.1, 5)):
        assert jnp.isnan(fmt.round(jnp.array(jnp.nan)))
        assert fmt.decode(fmt.encode(jnp.array(jnp.nan))) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: number_formats.symmetric(1), r"lie in \[2, 24\], got 1; of one bit"),
        (lambda: number_formats.symmetric(25), "got 25"),
        (lambda: number_formats.symmetric(8, 0.0), "positive and finite, got 0.0"),
        (lambda: number_formats.symmetric(8, -1.0), "positive and finite, got -1.0"),
        (lambda: number_formats.symmetric(8, np.nan), "positive and finite, got nan"),
        (lambda: number_formats.affine(8, np.array([1.0, 0.0])), "got 0.0 to 1.0"),
        (lambda: number_formats.affine(8, 1.0, 300), "from -128 to 127, got 300"),
        (lambda: number_formats.affine(8, 1.0, 0.5), "must be an integer"),
        (lambda: number_formats.fixed_point(0, 0), "integer_bits .* got 1"),
        (lambda: number_formats.fixed_point(-99, 101), "fraction_bits must be"),
        (lambda: number_formats.symmetric(24).levels(), "listed up to 16 bits"),
        (
            lambda: number_formats.symmetric(8).round(jnp.arange(3)),
            "expected floats, got int",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
