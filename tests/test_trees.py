"""Arithmetic on pytrees."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import trees


class Pair(NamedTuple):
    """Two leaves."""

    first: Any
    second: Any


A = {"x": jnp.array([3.0, -4.0]), "y": Pair(jnp.array(12.0), jnp.ones((2, 1)))}
B = {"x": jnp.array([1.0, 2.0]), "y": Pair(jnp.array(-1.0), jnp.full((2, 1), 0.5))}


def test_arithmetic_is_that_of_the_concatenated_leaves():
    a, b = (jax.flatten_util.ravel_pytree(t)[0] for t in (A, B))

    def flat(tree: Any) -> jax.Array:
        return jax.flatten_util.ravel_pytree(tree)[0]

    np.testing.assert_allclose(trees.dot(A, B), a @ b, rtol=1e-15)
    np.testing.assert_allclose(trees.norm(A), jnp.linalg.norm(a), rtol=1e-15)
    np.testing.assert_array_equal(trees.max_abs(A), 12.0)
    np.testing.assert_array_equal(flat(trees.add(A, B)), a + b)
    np.testing.assert_array_equal(flat(trees.sub(A, B)), a - b)
    np.testing.assert_array_equal(flat(trees.scale(2.0, A)), 2 * a)
    np.testing.assert_array_equal(flat(trees.axpy(2.0, A, B)), 2 * a + b)
    np.testing.assert_array_equal(flat(trees.zeros_like(A)), 0 * a)
    for condition, chosen in ((True, a), (False, b)):
        got = trees.where(jnp.asarray(condition), A, B)
        np.testing.assert_array_equal(flat(got), chosen)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300])
def test_norm_neither_overflows_nor_underflows(size: float):
    got = trees.norm({"a": jnp.array([3.0, 0.0]) * size, "b": jnp.array(4.0) * size})
    np.testing.assert_allclose(got, 5.0 * size, rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_norm_up_to_the_largest_float(dtype: jnp.dtype):
    """1 over the largest floats is flushed to 0, and so was every norm above 8.5e37."""
    largest = float(jnp.finfo(dtype).max)
    for size in (0.1 * largest, 0.5 * largest):
        vector = jnp.array([size, 0.5 * size], dtype)
        got = float(jax.jit(trees.norm)(vector))
        np.testing.assert_allclose(got, size * 1.25**0.5, rtol=1e-6)
    # The norm itself is too large a number.
    assert trees.norm(jnp.full(2, largest, dtype)) == jnp.inf


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_vector_over_its_norm_has_norm_one(dtype: jnp.dtype):
    limits = jnp.finfo(dtype)
    for size in (
        limits.max / 2,
        limits.max / 50,
        1.0,
        50 * limits.tiny,
        2 * limits.tiny,
    ):
        vector = {
            "a": jnp.array([0.6], dtype) * size,
            "b": jnp.array(-0.8, dtype) * size,
        }
        got = jax.jit(lambda v: trees.over(v, trees.norm(v)))(vector)
        np.testing.assert_allclose(
            [got["a"][0], got["b"]], [0.6, -0.8], rtol=4 * limits.eps
        )
    zero = jnp.zeros(2, dtype)
    np.testing.assert_array_equal(trees.over(zero, trees.norm(zero)), zero)


def test_norm_of_special_values():
    assert trees.norm({}) == 0
    assert trees.norm(jnp.zeros((0,))) == 0
    assert trees.norm(jnp.zeros(3)) == 0
    assert trees.norm(jnp.array([1.0, jnp.inf])) == jnp.inf
    assert jnp.isnan(trees.norm(jnp.array([1.0, jnp.nan])))


def test_sums_of_bfloat16_are_accumulated_in_float32():
    ones = jnp.ones(1000, jnp.bfloat16)  # in bfloat16 the sum would stop at 256
    assert trees.dot(ones, ones) == 1000
    assert trees.dot(ones, ones).dtype == jnp.float32
    np.testing.assert_allclose(trees.norm(ones), 1000**0.5, rtol=1e-6)
    assert trees.real_dtype({"a": ones, "b": jnp.ones(2)}) == jnp.float64


def test_scale_and_axpy_keep_dtypes():
    a = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2, jnp.float32)}
    factor = jnp.asarray(0.5, jnp.float64)
    for tree in (trees.scale(factor, a), trees.axpy(factor, a, a)):
        assert tree["half"].dtype == jnp.bfloat16
        assert tree["single"].dtype == jnp.float32


def test_split_floats_puts_everything_back_in_its_place():
    tree = {"key": jax.random.key(0), "labels": jnp.arange(3), "w": A, "mask": True}
    floats, merge = trees.split_floats(tree)
    assert len(floats) == len(jax.tree.leaves(A))
    doubled = merge([2 * x for x in floats])
    assert jax.tree.structure(doubled) == jax.tree.structure(tree)
    np.testing.assert_array_equal(doubled["w"]["x"], 2 * A["x"])
    np.testing.assert_array_equal(doubled["labels"], jnp.arange(3))
    assert doubled["key"] is tree["key"]


def test_require_float_names_the_leaf():
    trees.require_float({"a": 1.0, "b": np.ones(2)}, "inner")
    with pytest.raises(ValueError, match=r"inner\['b'\]\[1\] must be a floating-point"):
        trees.require_float({"a": 1.0, "b": [1.0, jnp.arange(2)]}, "inner")


def test_require_like_names_what_differs():
    with pytest.raises(ValueError, match="tree structure"):
        trees.require_like({"a": 1.0}, {"b": 1.0}, "got", "expected")
    with pytest.raises(ValueError, match=r"got\['a'\].*expected \(3,\), got \(2,\)"):
        trees.require_like({"a": jnp.ones(2)}, {"a": jnp.ones(3)}, "got", "expected")
