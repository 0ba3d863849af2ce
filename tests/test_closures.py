"""Closed-over values as explicit arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import closures


def test_constants_become_arguments():
    data = jnp.arange(3.0)
    hoisted, constants = closures.hoist(lambda w: {"y": w * data}, jnp.ones(3))
    assert [c.shape for c in constants] == [(3,)]
    got = hoisted([2 * data], jnp.full(3, 5.0))
    np.testing.assert_array_equal(got["y"], 10 * data)


def test_traced_constants_get_their_gradient():
    def loss(scale: jax.Array) -> jax.Array:
        hoisted, constants = closures.hoist(lambda w: jnp.sum(w * scale**2), 1.0)

        @jax.custom_vjp
        def opaque(constants: Any, w: jax.Array) -> jax.Array:
            return hoisted(constants, w)

        def forward(constants: Any, w: jax.Array) -> Any:
            return opaque(constants, w), (constants, w)

        def backward(saved: Any, v: jax.Array) -> Any:
            return jax.vjp(hoisted, *saved)[1](v)

        opaque.defvjp(forward, backward)
        return opaque(constants, 2.0)

    assert jax.jit(jax.grad(loss))(3.0) == 12.0
    np.testing.assert_array_equal(jax.vmap(jax.grad(loss))(jnp.ones(2)), [4.0, 4.0])


class Model:
    """An object whose attribute its method closes over."""

    def __init__(self, factor: float) -> None:
        self.factor = jnp.asarray(factor)

    def loss(self, w: jax.Array) -> jax.Array:
        return self.factor * w


def test_a_bound_method_whose_attribute_changed_is_traced_anew():
    model = Model(2.0)
    values = []
    for factor in (2.0, 5.0):
        model.factor = jnp.asarray(factor)
        hoisted, constants = closures.hoist(model.loss, 1.0)
        values.append(float(hoisted(constants, 1.0)))
    assert values == [2.0, 5.0]


def test_depends_on_is_a_static_check():
    def function(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        del b
        return jnp.sin(a) + jax.lax.cond(c > 0, lambda: c, lambda: 2 * c)

    arguments = (1.0, 1.0, 1.0)
    wanted = [closures.depends_on(function, arguments, i) for i in range(3)]
    assert wanted == [True, False, True]
    assert not closures.depends_on(lambda a: (a, 1.0)[1], (1.0,), 0)
    assert closures.depends_on(lambda a: a, (1.0,), 0)


def test_depends_on_sees_through_jit_and_loops():
    @jax.jit
    def inside(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda _, s: s * b, a)

    assert closures.depends_on(inside, (1.0, 2.0), 1)
