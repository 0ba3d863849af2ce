"""Fenchel back-propagation: the published targets, and the order of its error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import KEY, convolutional, data, dense, relative_error
from flax import linen

from bilevel import energy
from bilevel.energy.rules.fenchel_back_propagation import fenchel_back_propagation

COST = energy.squared_error()
BETAS = (0.3, 0.7)


def gradient(make_rule, network, shape, **options):
    inputs, labels = data(shape)
    rule = make_rule(network, COST, **options)
    return rule(network.init(KEY, inputs), inputs, labels)[1]


@pytest.mark.parametrize("beta", [0.01, 1.0])
@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.thinned(3)
def test_with_equal_betas_is_dual_propagation(make, beta):
    found = gradient(fenchel_back_propagation, *make(), betas=beta)
    expected = gradient(energy.dual_propagation, *make(), alpha=0.0, beta=beta)
    assert relative_error(found, expected) < 1e-12
    found = gradient(fenchel_back_propagation, *make(), betas=[beta, beta])
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("output", [0.1, 5.0])
def test_is_the_published_sweep(output):
    """Targets with their states, and the beta of the output, which cancels."""
    network, shape = dense()
    inputs, labels = data(shape)
    params = network.init(KEY, inputs)
    betas = [*BETAS, output]
    pre_activations = network.pre_activations(params, inputs)
    states = [jnp.tanh(a) for a in pre_activations[:-1]] + [pre_activations[-1]]
    error = states[-1] - jax.nn.one_hot(labels, 5)
    gap = betas[-1] * error  # s - t
    expected = []
    for layer in (2, 1, 0):
        below = inputs if layer == 0 else states[layer - 1]
        scale = betas[layer] * len(inputs)
        expected.append({"kernel": below.T @ gap / scale, "bias": gap.sum(0) / scale})
        if layer > 0:
            ratio = betas[layer - 1] / betas[layer]
            down = gap @ params[layer]["kernel"].T
            target = jnp.tanh(pre_activations[layer - 1] - ratio * down)
            gap = states[layer - 1] - target
    found = gradient(fenchel_back_propagation, network, shape, betas=betas[:-1])
    assert relative_error(found, expected[::-1]) < 1e-12


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.thinned(2)
def test_order_of_the_error_in_a_common_factor(make):
    network, shape = make()
    factors = 0.02 * 0.5 ** np.arange(4)
    exact = gradient(energy.back_propagation, network, shape)
    found = [
        relative_error(gradient(fenchel_back_propagation, *make(), betas=betas), exact)
        for betas in np.outer(factors, BETAS).tolist()
    ]
    slopes = np.diff(np.log(found)) / np.diff(np.log(factors))
    np.testing.assert_allclose(slopes, 1, atol=0.05)  # the next order bends the line


def test_each_layer_answers_to_its_own_beta():
    """The top hidden layer's beta moves the blocks up to it, and no other's does."""
    network, shape = dense()
    exact = gradient(energy.back_propagation, network, shape)
    low = gradient(fenchel_back_propagation, network, shape, betas=[0.5, 1e-6])
    assert relative_error(low[0], exact[0]) > 1e-2
    assert relative_error(low[1:], exact[1:]) < 1e-6
    high = gradient(fenchel_back_propagation, network, shape, betas=[1e-6, 0.5])
    assert relative_error(high[1], exact[1]) > 1e-2
    assert relative_error(high[2], exact[2]) < 1e-14


@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "leaky_relu"])
def test_exact_for_piecewise_linear_activations(activation):
    """As long as no unit crosses a kink."""
    network, shape = dense(activation)
    exact = gradient(energy.back_propagation, network, shape)
    found = gradient(fenchel_back_propagation, network, shape, betas=[1e-6, 3e-6])
    assert relative_error(found, exact) < 1e-8


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (0.0, "beta must be positive and finite, got 0.0"),
        (float("nan"), "beta must be positive and finite, got nan"),
        ([0.1, float("inf")], "beta must be positive and finite, got inf"),
        ([0.1, -1], "beta must be positive and finite, got -1"),
        ([0.1], "each of the 2 hidden layers, got 1"),
        ([0.1, 0.1, 0.1], "each of the 2 hidden layers, got 3"),
    ],
)
def test_what_is_refused(betas, message):
    network = energy.feedforward([linen.Dense(2) for _ in range(3)])
    with pytest.raises(ValueError, match=message):
        fenchel_back_propagation(network, COST, betas=betas)
