"""What every learning rule must do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from energy.networks import (
    KEY,
    RULES,
    Dense,
    convolutional,
    data,
    dense,
    relative_error,
)

from bilevel import energy, iterate
from bilevel.datasets import load_digits

COST = energy.cross_entropy()
NETWORKS = {"dense": dense, "convolutional": convolutional}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", RULES)
def test_value_outputs_and_tree(name, network):
    chain, shape = NETWORKS[network]()
    inputs, labels = data(shape)
    rule = RULES[name](chain, COST)
    assert rule.name == name
    params = rule.init(KEY, inputs)
    (value, aux), grads = rule(params, inputs, labels, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    np.testing.assert_array_equal(aux.outputs, rule.apply(params, inputs))
    assert float(value) == pytest.approx(float(COST.value(aux.outputs, labels).mean()))


@pytest.mark.parametrize("name", RULES)
def test_jit_traces_once_and_agrees(name):
    chain, shape = dense()
    inputs, labels = data(shape)
    rule = RULES[name](chain, COST)
    params = rule.init(KEY, inputs)
    chex.clear_trace_counter()  # it counts by the name of the function
    counted = jax.jit(chex.assert_max_traces(rule.value_and_grad, n=1))
    for _ in range(2):
        (value, _), grads = counted(params, inputs, labels, None)
    (expected, _), eager = rule(params, inputs, labels)
    assert relative_error(grads, eager) < 1e-12
    assert float(value) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_vmap_over_seeds_equals_loop(name):
    chain, shape = dense()
    inputs, labels = data(shape)
    rule = RULES[name](chain, COST)
    keys = jax.random.split(KEY, 3)
    params = jax.vmap(lambda key: rule.init(key, inputs))(keys)
    batched = jax.vmap(lambda p: rule(p, inputs, labels)[1])(params)
    for seed, key in enumerate(keys):
        one = rule(rule.init(key, inputs), inputs, labels)[1]
        found = jax.tree.map(lambda x, seed=seed: x[seed], batched)
        assert relative_error(found, one) < 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_narrow_types(name, dtype):
    chain, shape = dense()
    inputs, labels = data(shape)
    rule = RULES[name](chain, COST)
    params = rule.init(KEY, inputs)
    _, wide = rule(params, inputs, labels)
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
    _, narrow = rule(cast(params), inputs.astype(dtype), labels)
    chex.assert_trees_all_equal_dtypes(narrow, cast(params))
    wanted = 1e-4 if dtype == jnp.float32 else 0.2
    assert relative_error(jax.tree.map(jnp.float64, narrow), wide) < wanted


@pytest.mark.parametrize("name", RULES)
def test_learns_digits(name):
    """A hundred steps of Adam; a network that does not learn stays at 10 %."""
    digits = load_digits(0)
    train, test = jax.tree.map(jnp.asarray, (digits.train, digits.test))
    chain = energy.feedforward([Dense(width) for width in (64, 32, 10)], "tanh")
    rule = RULES[name](chain, COST)
    params = rule.init(KEY, train.inputs[:1])
    adam = optax.adam(3e-3)

    def step(carry):
        params, state = carry
        (value, _), grads = rule(params, train.inputs, train.labels)
        updates, state = adam.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), values = iterate(
        step, (params, adam.init(params)), num_steps=100, history=True
    )
    right = jnp.argmax(rule.apply(params, test.inputs), -1) == test.labels
    assert values[-1] < values[0] / 2
    assert float(right.mean()) > 0.85
