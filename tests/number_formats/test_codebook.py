"""Codebooks, binary and ternary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import number_formats


@pytest.mark.parametrize("count", [2, 3, 7, 16, 40])
def test_goes_to_the_nearest(count):
    rng = np.random.default_rng(count)
    levels = np.sort(rng.normal(size=count))
    fmt = number_formats.codebook(levels)
    x = 2 * rng.normal(size=(50, 20))
    places = np.abs(x[..., None] - levels).argmin(-1)
    codes, rounded = jax.jit(lambda x: (fmt.encode(x), fmt.round(x)))(x)
    np.testing.assert_array_equal(codes, places)
    np.testing.assert_array_equal(rounded, levels[places])
    np.testing.assert_array_equal(fmt.levels(), levels)
    assert fmt.bits == int(np.ceil(np.log2(count)))
    assert fmt.range == (levels[0], levels[-1])


def test_ties():
    integers = number_formats.codebook(np.arange(-3.0, 4.0))
    x = jnp.arange(-2.5, 3.0)
    np.testing.assert_array_equal(integers.round(x), jnp.round(x))


def test_binary_is_the_sign():
    x = jnp.array([0.3, 0.0, -0.0, -1e-30, np.inf, -np.inf, np.nan])
    expected = [1, 1, 1, -1, 1, -1, np.nan]
    fmt = number_formats.binary()
    np.testing.assert_array_equal(fmt.round(x), expected)
    np.testing.assert_array_equal(fmt.encode(x), [1, 1, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(number_formats.binary(0.25).levels(), [-0.25, 0.25])
    scales = jnp.array([[1.0, 2.0]])
    found = number_formats.binary(scales).round(jnp.array([[3.0, -0.1]]))
    np.testing.assert_array_equal(found, [[1.0, -2.0]])


def test_subnormals_have_a_sign():
    """XLA on a CPU takes them for zero when it compares."""
    x = jnp.array([-1e-40, 1e-40, -1e-45], jnp.float32)
    expected = [-1, 1, -1]
    np.testing.assert_array_equal(jax.jit(number_formats.binary().round)(x), expected)
    even = number_formats.codebook([-3.0, -1.0, 1.0, 3.0])
    np.testing.assert_array_equal(jax.jit(even.round)(x), expected)


def test_ternary_gives_ties_to_zero():
    x = jnp.array([-1.1, -1.0, -0.3, 1.0, 1.1, 9.0])
    found = number_formats.ternary(2.0).round(x)
    np.testing.assert_array_equal(found, [-2, 0, 0, 0, 2, 2])
    np.testing.assert_array_equal(
        number_formats.ternary(2.0).encode(x), [0, 1, 1, 1, 2, 2]
    )


def test_levels_that_are_learned():
    def loss(levels):
        fmt = number_formats.codebook(levels)
        with pytest.raises(ValueError, match="the levels are traced"):
            fmt.levels()
        return jnp.sum(fmt.round(jnp.array([0.2, 0.9, 0.8])))

    np.testing.assert_array_equal(
        jax.jit(jax.grad(loss))(jnp.array([0.0, 1.0])), [1, 2]
    )


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([1.0], r"at least two levels, in one axis, got the shape \(1,\)"),
        ([], "at least two levels"),
        (np.ones((2, 2)), "in one axis"),
        ([1.0, 0.0], r"must be finite and ascend, each once, got \[1.0, 0.0\]"),
        ([0.0, 0.0], "each once"),
        ([0.0, np.inf], "finite"),
    ],
)
def test_what_is_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        number_formats.codebook(levels)
