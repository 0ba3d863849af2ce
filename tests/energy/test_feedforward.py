"""Chains of Flax layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from bilevel import energy

KEY = jax.random.key(0)


def max_pool(s):
    return linen.max_pool(s, (2, 2), (2, 2))


def flatten(s):
    return s.reshape(len(s), -1)


def test_is_the_chain_it_says():
    network = energy.feedforward([linen.Dense(5), linen.Dense(3)], "tanh")
    inputs = jax.random.normal(KEY, (4, 7))
    first, second = params = network.init(KEY, inputs)
    hidden = jnp.tanh(inputs @ first["kernel"] + first["bias"][None])
    expected = hidden @ second["kernel"] + second["bias"][None]
    np.testing.assert_allclose(network.apply(params, inputs), expected, rtol=1e-12)


def test_blocks_of_several_parts():
    blocks = [linen.Conv(4, (3, 3)), [max_pool, flatten, linen.Dense(3)]]
    network = energy.feedforward(blocks)
    inputs = jax.random.normal(KEY, (2, 8, 8, 1))
    params = network.init(KEY, inputs)
    assert [sorted(one) for one in params] == [["bias", "kernel"]] * 2
    assert params[1]["kernel"].shape == (4 * 4 * 4, 3)
    assert network.apply(params, inputs).shape == (2, 3)


def test_two_layers_and_none_in_a_block():
    blocks = [[linen.Dense(5), linen.Dense(4)], [flatten], linen.Dense(2)]
    network = energy.feedforward(blocks, "identity")
    inputs = jax.random.normal(KEY, (3, 6))
    params = network.init(KEY, inputs)
    assert [len(params[0]), len(params[1])] == [2, 0]
    state = inputs
    for one in (*params[0], params[2]):
        state = state @ one["kernel"] + one["bias"][None]
    np.testing.assert_allclose(network.apply(params, inputs), state, rtol=1e-12)


def test_init_depends_on_the_key_alone():
    network = energy.feedforward([linen.Dense(5), linen.Dense(5), linen.Dense(5)])
    first = network.init(KEY, jnp.ones((1, 5)))
    again = network.init(KEY, jnp.zeros((9, 5)))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not jnp.array_equal(first[1]["kernel"], first[2]["kernel"])


@pytest.mark.thorough
def test_layers_of_nnx_come_in_by_the_bridge():
    blocks = [
        nnx.bridge.to_linen(nnx.Conv, 2, 3, (3, 3), param_dtype=jnp.float64),
        [flatten, nnx.bridge.to_linen(nnx.Linear, 48, 2, param_dtype=jnp.float64)],
    ]
    network = energy.feedforward(blocks, "tanh")
    inputs, labels = jax.random.normal(KEY, (3, 4, 4, 2)), jnp.array([0, 1, 1])
    params = network.init(KEY, inputs)
    other = jax.tree.leaves(network.init(jax.random.key(1), inputs))
    assert not jnp.array_equal(jax.tree.leaves(params)[-1], other[-1])
    linear = [linen.Conv(3, (3, 3)), [flatten, linen.Dense(2)]]
    same = energy.feedforward(linear, "tanh")
    make = lambda chain: energy.dual_propagation(chain, energy.cross_entropy())
    found = make(network)(params, inputs, labels)
    expected = make(same)(params, inputs, labels)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least one block"):
        energy.feedforward([])
    with pytest.raises(ValueError, match="block 1 holds 3; expected Flax"):
        energy.feedforward([linen.Dense(2), 3])
    with pytest.raises(ValueError, match=r"Linear of nnx.*to_linen\(nnx.Linear"):
        energy.feedforward([nnx.Linear(2, 3, rngs=nnx.Rngs(0))])
    one = linen.Dense(2)
    with pytest.raises(ValueError, match="block 2 holds the same Dense object as bloc"):
        energy.feedforward([linen.Dense(2), one, [jnp.tanh, one]])  # E13
    with pytest.raises(ValueError, match="block 0 holds the same Dense object as bloc"):
        energy.feedforward([[one, one]])
    norm = linen.BatchNorm(use_running_average=True)
    network = energy.feedforward([[linen.Dense(2), norm]])
    with pytest.raises(ValueError, match=r"BatchNorm has variables .* \(batch_stats\)"):
        network.init(KEY, jnp.ones((1, 2)))
