"""What every learning rule must do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from energy.networks import (
    KEY,
    ON_CHAINS,
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
# What a rule's updates are by construction, in the limit; None: nobody has looked. That
# those with True approach the gradient is tested with each rule.
UNBIASED = {
    "back_propagation": True,
    "difference_target_propagation": False,
    "direct_feedback_alignment": False,
    "dual_propagation": True,
    "feedback_alignment": False,
    "fenchel_back_propagation": True,
    "incremental_predictive_coding": False,
    "kolen_pollack": False,
    "lpom": False,  # with clamped outputs, the default
    "multi_pass_dual_propagation": True,
    "predictive_coding": True,
    "sign_symmetry": False,
    "z_il": True,
    "contrastive_hebbian_learning": False,
    "coupled_learning": False,
    "equilibrium_propagation": True,
    "holomorphic_equilibrium_propagation": True,
    "recurrent_back_propagation": True,
    "truncated_back_propagation_through_time": None,
}


def moved(params, seed=0):
    """So that no bias is zero."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    new = [x + 0.1 * jax.random.normal(key, x.shape, x.dtype) for x, key in pairs]
    return jax.tree.unflatten(treedef, new)


@pytest.mark.parametrize("name", RULES)
def test_contract(name):
    """Value, outputs and tree; one trace; vmap over seeds equals each seed."""
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    rule = RULES[name](chain, COST)
    assert rule.name == name
    params = moved(rule.init(KEY, inputs))
    chex.clear_trace_counter()  # it counts by the name of the function
    counted = jax.jit(chex.assert_max_traces(rule.value_and_grad, n=1))
    counted(params, inputs, labels, None)
    (value, aux), grads = counted(params, inputs, labels, None)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    apply = jax.jit(rule.apply)
    # A second call has other values, of everything.
    others = moved(params, 1), inputs[::-1] + 0.1, labels[::-1] % 3
    for given, found in (
        ((params, inputs, labels), (value, aux)),
        (others, counted(*others, None)[0]),
    ):
        value, aux = found
        np.testing.assert_allclose(aux.outputs, apply(*given[:2]), rtol=1e-12)
        expected = float(COST.value(aux.outputs, given[2]).mean())
        assert float(value) == pytest.approx(expected)
    assert (None if aux.unbiased is None else bool(aux.unbiased)) is UNBIASED[name]

    seeds = jax.random.split(KEY, 2)
    stacked = jax.vmap(lambda key: rule.init(key, inputs))(seeds)
    several = jax.jit(jax.vmap(rule.value_and_grad, in_axes=(0, None, None, None)))
    _, batched = several(stacked, inputs, labels, None)
    for seed in range(2):
        own = jax.tree.map(lambda x, seed=seed: x[seed], stacked)
        found = jax.tree.map(lambda x, seed=seed: x[seed], batched)
        _, one = counted(own, inputs, labels, None)
        assert relative_error(found, one) < 1e-9


@pytest.mark.thorough  # without jit a rule compiles every operation by itself
@pytest.mark.parametrize("name", RULES)
def test_without_jit_it_is_the_same(name):
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    rule = RULES[name](chain, COST)
    params = moved(rule.init(KEY, inputs))
    found, expected = (f(params, inputs, labels) for f in (rule, jax.jit(rule)))
    assert relative_error(found[1], expected[1]) < 1e-9
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-12)


@pytest.mark.parametrize("name", ON_CHAINS)
@pytest.mark.thinned(99)
def test_convolutions_and_pooling(name):
    chain, shape = convolutional()
    inputs, labels = data(shape)
    rule = RULES[name](chain, COST)
    params = rule.init(KEY, inputs)
    (_, aux), grads = jax.jit(rule.value_and_grad)(params, inputs, labels, None)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    outputs = jax.jit(rule.apply)(params, inputs)
    np.testing.assert_allclose(aux.outputs, outputs, rtol=1e-12)
    chex.assert_tree_all_finite(grads)


# A difference of states that are near each other needs more digits than bfloat16 has.
CONTRASTS = {
    "coupled_learning",
    "dual_propagation",
    "equilibrium_propagation",
    "fenchel_back_propagation",
    "multi_pass_dual_propagation",
    "truncated_back_propagation_through_time",
}


NARROW = [
    # The examples train in float32.
    pytest.param(name, dtype, marks=pytest.mark.slow if dtype == jnp.float32 else [])
    for name in RULES
    for dtype in (jnp.float32, jnp.bfloat16)
    # There are no narrow complex numbers, and CG wants float32.
    if dtype == jnp.float32
    or name not in ("holomorphic_equilibrium_propagation", "recurrent_back_propagation")
]


@pytest.mark.parametrize(("name", "dtype"), NARROW)
@pytest.mark.thinned(99)
def test_narrow_types(name, dtype):
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    rule = RULES[name](chain, COST)
    params = rule.init(KEY, inputs)
    run = jax.jit(rule.value_and_grad)
    _, wide = run(params, inputs, labels, None)
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
    _, narrow = run(cast(params), inputs.astype(dtype), labels, None)
    chex.assert_trees_all_equal_dtypes(narrow, cast(params))
    error = relative_error(jax.tree.map(jnp.float64, narrow), wide)
    if dtype == jnp.float32:
        assert error < 1e-4
    else:
        assert error < (1.0 if name in CONTRASTS else 0.3)


@pytest.mark.parametrize("name", [*ON_CHAINS, "equilibrium_propagation"])
@pytest.mark.thinned(4)
def test_learns_digits(name):
    """A hundred steps of Adam; a network that does not learn stays at 10 %."""
    digits = load_digits(0)
    train, test = jax.tree.map(jnp.asarray, (digits.train, digits.test))
    train = jax.tree.map(lambda x: x[:700], train)
    chain = energy.feedforward([Dense(width) for width in (64, 32, 10)], "tanh")
    rule = RULES[name](chain, COST)
    params = rule.init(KEY, train.inputs[:1])
    adam = optax.adam(3e-3)

    def step(carry):
        params, state = carry
        (value, _), grads = rule(params, train.inputs, train.labels)
        updates, state = adam.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    def hidden_angles(params):
        grads = rule(params, train.inputs, train.labels)[1].forward
        _, exact = exact_rule(params.forward, train.inputs, train.labels)
        return energy.diagnostics.angles(grads, exact)[:-1]

    exact_rule, start = energy.back_propagation(chain, COST), params
    (params, _), values = iterate(
        step, (params, adam.init(params)), num_steps=100, history=True
    )
    right = jnp.argmax(rule.apply(params, test.inputs), -1) == test.labels
    assert values[-1] < values[0] / 2
    assert float(right.mean()) > 0.85
    if name in ("feedback_alignment", "direct_feedback_alignment"):
        # Fixed feedback starts orthogonal, and the forward weights come to meet it.
        angles = jax.jit(hidden_angles)
        before, after = angles(start), angles(params)
        assert jnp.all(jnp.abs(before - 90) < 15)
        assert jnp.all(after < 82)
