"""Complex states go through affine blocks part by part, and through others whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from bilevel import energy
from bilevel.energy.analytic import not_analytic
from bilevel.energy.networks.chains import drives_of
from bilevel.energy.phases import Data


def average(s):
    return linen.avg_pool(s, (2, 2), (2, 2))


def soft_maximum(s):
    """Softmax-weighted pooling of neighbours: analytic, not affine."""
    pairs = s.reshape(len(s), -1, 2)
    weights = jnp.exp(pairs)
    return jnp.sum(pairs * weights, -1) / jnp.sum(weights, -1)


CHAINS = {
    "dense": ([linen.Dense(6), linen.Dense(4)], (5,)),
    "convolutional": (
        [
            [linen.Conv(2, (3, 3)), average],
            [linen.Conv(3, (3, 3)), average],
            [lambda s: s.reshape(len(s), -1), linen.Dense(4)],
        ],
        (8, 8, 1),
    ),
    "analytic": ([linen.Dense(6), [soft_maximum, linen.Dense(4)]], (5,)),
}


def parts(name):
    blocks, shape = CHAINS[name]
    chain = energy.feedforward(blocks, "tanh")
    inputs = jax.random.normal(jax.random.key(0), (3, *shape))
    params = chain.init(jax.random.key(1), inputs)
    params = jax.tree.map(lambda x: x + 0.1, params)  # biases that are not zero
    real = [jnp.tanh(a) for a in chain.pre_activations(params, inputs)]
    return chain, params, [s * (1 + 0.3j) + 0.1j for s in real], inputs


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.thinned(3)
def test_drives_are_those_of_the_complex_block(name):
    chain, params, state, inputs = parts(name)
    whole = jax.tree.map(lambda x: x.astype(complex), params)
    found = drives_of(chain, params, state, inputs)
    expected = drives_of(chain, whole, state, inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CHAINS)
def test_derivatives_are_those_of_the_complex_block(name):
    chain, params, state, inputs = parts(name)
    whole = jax.tree.map(lambda x: x.astype(complex), params)
    network = energy.networks.hopfield(chain)

    def slopes(params):
        energy_of = lambda s: network.coupling(params, s, inputs)
        return jax.grad(energy_of, holomorphic=True)(state)

    for one, other in zip(slopes(params), slopes(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


def test_only_affine_blocks_are_taken_apart():
    def is_apart(name):
        chain, params, state, inputs = parts(name)
        made = jax.make_jaxpr(lambda s: drives_of(chain, params, s, inputs))(state)
        return "analytic_as_a_whole" in str(made)

    assert is_apart("dense")
    assert not is_apart("analytic")


@pytest.mark.parametrize("name", CHAINS)
def test_the_parts_do_not_count_as_not_analytic(name):
    chain, params, state, inputs = parts(name)
    network = energy.networks.hopfield(chain)
    real = [s.real for s in state]
    targets = jnp.zeros(len(inputs), int)
    for cost in (energy.squared_error(), energy.cross_entropy()):
        data = Data(params, inputs, targets)
        assert not_analytic(network, cost, data, real) == []
