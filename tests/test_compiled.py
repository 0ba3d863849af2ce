"""What is taken for the same program, and what must not be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import compiled, hypergradients, inner_solvers, linear_solvers

SETTINGS = {
    "newton": lambda a: inner_solvers.newton(rtol=a),
    "lbfgs": lambda a: inner_solvers.lbfgs(rtol=a),
    "sgd": lambda a: inner_solvers.gradient_descent(a),
    "adam": lambda a: inner_solvers.gradient_descent(optax.adam(a)),
    "schedule": lambda a: inner_solvers.gradient_descent(
        optax.chain(optax.clip(1.0), optax.sgd(optax.exponential_decay(a, 10, 0.5)))
    ),
    "cg": lambda a: hypergradients.implicit(linear_solvers.cg(rtol=a)),
    "damping": lambda a: hypergradients.implicit(linear_solvers.cg(damping=a)),
    "neumann": lambda a: hypergradients.implicit(linear_solvers.neumann(a)),
    "nudged": lambda a: hypergradients.nudged(a),
    "partial": lambda a: functools.partial(optax.sgd, a),
    "dicts": lambda a: {"one": (a, 1), "two": (2, a)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_what_they_hold(name: str):
    make = SETTINGS[name]
    assert compiled.signature(make(0.1)) == compiled.signature(make(0.1))
    assert compiled.signature(make(0.1)) != compiled.signature(make(0.2))


def test_every_entry_of_a_dict_counts():
    """Items are made on the way and their ids used again: none may pass for another."""
    base = {f"name {i}": (i, float(i)) for i in range(20)}
    for i in range(20):
        other = {**base, f"name {i}": (i, -1.0)}
        assert compiled.signature(base) != compiled.signature(other)


def test_what_cannot_be_compared_is_not_shared():
    with pytest.raises(compiled.Unknown):
        compiled.signature(lambda: 0)
    with pytest.raises(compiled.Unknown):
        compiled.signature(jnp.ones(3))


def steep(beta: float):
    @jax.custom_vjp
    def sign(x):
        return jnp.sign(x)

    sign.defvjp(lambda x: (jnp.sign(x), x), lambda x, g: (g * beta * x,))
    return lambda x: jnp.sum(sign(x) * x)


def test_rules_of_differentiation_tell_objectives_apart():
    """The same forward program: only the surrogate's slope differs."""
    x = jnp.arange(1.0, 4.0)
    keys = [compiled.objective_key(steep(beta), x) for beta in (1.0, 1.0, 2.0)]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_constants_of_inner_functions_count():
    x = jnp.arange(3.0)

    def make(data):
        inner = jax.jit(lambda w: w * data)
        return lambda w: jnp.sum(inner(w) ** 2)

    first = jax.make_jaxpr(make(np.array([1.0, 2.0, 3.0])))(x)
    other = jax.make_jaxpr(make(np.array([1.0, 2.0, 4.0])))(x)
    if not first.consts:  # else they are arguments of what is compiled
        assert compiled.structure(first) != compiled.structure(other)
    values = [
        compiled.call(make(jnp.array([1.0, 2.0, c])), x).item() for c in (3.0, 4.0, 3.0)
    ]
    assert values == [40.0, 68.0, 40.0]


def test_a_second_call_compiles_nothing_and_sees_other_values():
    """Through the hypergradient, through `jax.grad`, and with everything made anew."""
    count = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: count.append(name) if "backend_compile" in name else None
    )
    scale = 1.0

    def loss(w, x, batch):
        return scale * jnp.sum((w - x * batch) ** 2)

    data = jnp.array([1.0, 2.0])

    def gradients(x):
        evaluate = bilevel.value_and_hypergradient(bilevel.Problem(loss, loss))
        out = evaluate(jnp.zeros(2), x, bilevel.Batches(data, 2 * data))
        solve = bilevel.argmin(loss)
        through = jax.grad(lambda x: jnp.sum(solve(jnp.zeros(2), x, data)[0]))(x)
        return out.gradient, through

    try:
        # F = sum (w - 2 x b)^2 with w = x b: dF/dx = 2 x |b|^2.
        ones, threes = jnp.array([1.0, 1.0]), jnp.array([3.0, 3.0])
        gradients(ones)
        before = len(count)
        direct, through = gradients(threes)
        assert len(count) == before
        np.testing.assert_allclose(direct, 6 * data**2, rtol=1e-10)
        np.testing.assert_allclose(through, data, rtol=1e-10)
        scale = 5.0
        direct, through = gradients(jnp.full(2, 3.0))
        np.testing.assert_allclose(direct, 30 * data**2, rtol=1e-10)
        np.testing.assert_allclose(through, data, rtol=1e-10)
    finally:
        jax.monitoring.clear_event_listeners()
