"""Products with second derivatives, against the matrices that jax forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from reference_problems import distance

from bilevel import derivatives, trees

KEY = jax.random.key(0)
INNER = {"a": jax.random.normal(KEY, (2, 2)), "b": jnp.array([0.3, -0.2])}
OUTER = {"x": jnp.array([0.5, -1.0, 0.2]), "labels": jnp.array([0, 1])}


def value(inner: Any, theta: Any) -> jax.Array:
    """Neither quadratic nor separable."""
    z = jnp.tanh(inner["a"] @ inner["b"]) - theta["labels"]
    flat = ravel_pytree(inner)[0]
    return (
        jnp.sum(z**2)
        + jnp.sum(jnp.exp(theta["x"][:2]) * flat[:2] ** 4)
        + (theta["x"][2] * jnp.sum(jnp.sin(flat)))
    )


ORACLE = derivatives.oracle(value)
DIRECTION = jax.tree.map(lambda x: jnp.cos(1.0 + x), INNER)


def floats(theta: Any) -> tuple[Any, Any]:
    values, merge = trees.split_floats(theta)
    return values, merge


def test_hvp_is_the_hessian_times_the_vector():
    flat, unravel = ravel_pytree(INNER)
    hessian = jax.hessian(lambda w: value(unravel(w), OUTER))(flat)
    expected = unravel(hessian @ ravel_pytree(DIRECTION)[0])
    product = derivatives.hvp(ORACLE.gradient, INNER, OUTER)
    assert distance(product(DIRECTION), expected) <= 1e-13


def test_mixed_products_are_those_of_the_mixed_jacobian():
    values, merge = floats(OUTER)
    flat, unravel = ravel_pytree(INNER)

    def gradient(inner: Any, values: Any) -> Any:
        return ORACLE.gradient(inner, merge(values))

    matrix = jax.jacobian(lambda v: ravel_pytree(gradient(unravel(flat), v))[0])(
        values
    )[0]
    pulled = derivatives.mixed_vjp(gradient, INNER, values, DIRECTION)
    assert distance(pulled, [ravel_pytree(DIRECTION)[0] @ matrix]) <= 1e-13
    tangent = [jnp.array([1.0, -2.0, 0.5])]
    pushed = derivatives.mixed_jvp(gradient, INNER, values, tangent)
    assert distance(pushed, unravel(matrix @ tangent[0])) <= 1e-13


@pytest.mark.thorough
def test_gauss_newton_is_the_part_of_the_hessian_that_it_says():
    features = jnp.array([[1.0, 2.0], [0.5, -1.0], [2.0, 0.1]])

    def residuals(w: Any) -> Any:
        return {"out": jnp.tanh(features @ w["a"]) + w["b"]}

    def loss(outputs: Any) -> jax.Array:
        return jax.nn.logsumexp(outputs["out"]) + jnp.sum(outputs["out"] ** 4)

    inner = {"a": jnp.array([0.3, -0.4]), "b": jnp.array([0.1, 0.2, 0.3])}
    flat, unravel = ravel_pytree(inner)
    jacobian = jax.jacobian(lambda w: residuals(unravel(w))["out"])(flat)
    curvature = jax.hessian(lambda z: loss({"out": z}))(residuals(inner)["out"])
    direction = jax.tree.map(jnp.sin, inner)
    expected = jacobian.T @ curvature @ jacobian @ ravel_pytree(direction)[0]
    product = derivatives.gauss_newton(residuals, loss, inner)
    assert distance(product(direction), unravel(expected)) <= 1e-13


def test_symmetric_gradient_has_the_values_and_the_pull_back_of_the_plain_one():
    plain, mixed = jax.grad(value), derivatives.symmetric_gradient(value)
    assert distance(mixed(INNER, OUTER), plain(INNER, OUTER)) == 0
    values, merge = floats(OUTER)

    def pull(gradient: Any) -> Any:
        return jax.jit(
            lambda w, v: jax.vjp(lambda w, v: gradient(w, merge(v)), w, v)[1](DIRECTION)
        )(INNER, values)

    assert distance(pull(mixed), pull(plain)) <= 1e-13


@pytest.mark.thorough
def test_symmetric_gradient_can_be_differentiated_in_reverse_mode_twice():
    def loss(gradient: Any, x: jax.Array) -> jax.Array:
        theta = {**OUTER, "x": x}
        return trees.dot(gradient(INNER, theta), DIRECTION) ** 2

    mixed = derivatives.symmetric_gradient(value)
    got = jax.jacrev(jax.grad(lambda x: loss(mixed, x)))(OUTER["x"])
    expected = jax.jacrev(jax.grad(lambda x: loss(jax.grad(value), x)))(OUTER["x"])
    assert distance(got, expected) <= 1e-12


def test_symmetric_gradient_refuses_forward_mode():
    mixed = derivatives.symmetric_gradient(value)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda w: mixed(w, OUTER), (INNER,), (DIRECTION,))


def test_oracles_of_nudged_problems():
    tilt = DIRECTION

    def penalty(inner: Any, theta: Any) -> jax.Array:
        return trees.norm(inner) ** 2 + jnp.sum(theta["x"])

    tilted = derivatives.tilted(ORACLE, tilt)
    twice = derivatives.tilted(tilted, tilt)
    penalised = derivatives.penalised(ORACLE, penalty, 0.3)
    expected = {
        "tilted": lambda w, t: value(w, t) + trees.dot(tilt, w),
        "twice": lambda w, t: value(w, t) + 2 * trees.dot(tilt, w),
        "penalised": lambda w, t: value(w, t) + 0.3 * penalty(w, t),
    }
    for name, oracle in (
        ("tilted", tilted),
        ("twice", twice),
        ("penalised", penalised),
    ):
        function = expected[name]
        out, gradient = oracle.value_and_gradient(INNER, OUTER)
        np.testing.assert_allclose(out, function(INNER, OUTER), rtol=1e-14)
        np.testing.assert_allclose(oracle.value(INNER, OUTER), out, rtol=1e-14)
        for got in (gradient, oracle.gradient(INNER, OUTER)):
            assert distance(got, jax.grad(function)(INNER, OUTER)) <= 1e-14
    assert distance(twice.tilt, trees.scale(2.0, tilt)) == 0
    assert penalised.opaque
    assert not tilted.opaque


def test_oracle_with_aux():
    oracle = derivatives.oracle(lambda w, t: (value(w, t), {"seen": w}), has_aux=True)
    np.testing.assert_array_equal(oracle.value(INNER, OUTER), value(INNER, OUTER))
    assert distance(oracle.aux(INNER, OUTER)["seen"], INNER) == 0
    assert ORACLE.aux(INNER, OUTER) is None


def test_zero_cotangents_fit_any_leaf():
    for leaf in (jnp.ones(2), jnp.arange(3), jnp.array(True), jax.random.key(0)):
        zero = derivatives.zero_cotangent(leaf)
        expected = jnp.zeros(2) if leaf.shape == (2,) else None
        if expected is None:
            assert zero.dtype == jax.dtypes.float0
            assert zero.shape == leaf.shape
        else:
            np.testing.assert_array_equal(zero, expected)
