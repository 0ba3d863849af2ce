"""Dual propagation: orders of its error, exactness, and the published dyads."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import (
    KEY,
    Conv,
    Dense,
    convolutional,
    data,
    dense,
    relative_error,
)
from flax import linen

from bilevel import energy


def errors(network, shape, betas, cost, **options):
    """Relative errors to back-propagation."""
    inputs, labels = data(shape)
    exact = energy.back_propagation(network, cost)
    params = exact.init(KEY, inputs)
    _, expected = exact(params, inputs, labels)
    found = []
    for beta in betas:
        rule = energy.dual_propagation(network, cost, beta=beta, **options)
        found.append(relative_error(rule(params, inputs, labels)[1], expected))
    return np.array(found)


@pytest.mark.parametrize("cost", [energy.squared_error(), energy.cross_entropy()])
@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize(("alpha", "order"), [(0.0, 1), (0.5, 2), (1.0, 1), (0.3, 1)])
@pytest.mark.thinned(99)
def test_order_of_the_error(make, alpha, order, cost):
    network, shape = make()
    betas = 0.02 * 0.5 ** np.arange(4)
    found = errors(network, shape, betas, cost, alpha=alpha)
    slopes = np.diff(np.log(found)) / np.diff(np.log(betas))
    # The next order bends the line; a wrong order would be off by one.
    np.testing.assert_allclose(slopes, order, atol=0.1)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.thorough
def test_order_of_the_original_rule(alpha):
    network, shape = dense()
    betas = 0.02 * 0.5 ** np.arange(4)
    options = {"alpha": alpha, "original": True}
    found = errors(network, shape, betas, energy.squared_error(), **options)
    slopes = np.diff(np.log(found)) / np.diff(np.log(betas))
    np.testing.assert_allclose(slopes, 1, atol=0.1)  # as above
    transposed = errors(network, shape, betas, energy.squared_error(), alpha=alpha)
    assert np.all(found > 1.2 * transposed)  # feedback leaks into sbar


@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "leaky_relu"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.thinned(4)
def test_exact_for_piecewise_linear_activations(make, alpha, activation):
    """As long as no unit crosses a kink, and no maximum moves."""
    network, shape = make(activation)
    (error,) = errors(network, shape, [1e-6], energy.cross_entropy(), alpha=alpha)
    assert error < 1e-8


@pytest.mark.thorough
def test_average_pooling():
    def network(activation):
        pool = lambda s: linen.avg_pool(s, (2, 2), (2, 2))
        flat = lambda s: s.reshape(len(s), -1)
        blocks = [Conv(3, (3, 3)), [pool, Conv(3, (3, 3))], [pool, flat, Dense(5)]]
        return energy.feedforward(blocks, activation)

    betas, cost = 0.02 * 0.5 ** np.arange(4), energy.cross_entropy()
    found = errors(network("tanh"), (6, 8, 8, 2), betas, cost)
    np.testing.assert_allclose(np.diff(np.log2(found)), -2, atol=0.1)  # as above
    assert errors(network("relu"), (6, 8, 8, 2), [1e-6], cost) < 1e-8


def dyads(params, inputs, labels, *, alpha, beta, original, f, proximal=False):
    """The states of the published update, one backward sweep over dense layers."""
    kernels = [one["kernel"] for one in params]
    biases = [one["bias"] for one in params]
    states, pre_activations = [inputs], []
    for kernel, bias in zip(kernels, biases, strict=True):
        pre_activations.append(states[-1] @ kernel + bias[None])
        states.append(f(pre_activations[-1]))
    up, down = (alpha, 1 - alpha) if original else (1 - alpha, alpha)
    outputs, targets = pre_activations[-1], jax.nn.one_hot(labels, 5)
    delta, grads = -beta * (outputs - targets), []
    if proximal:
        plus, minus = alpha * beta, (alpha - 1) * beta
        delta = (outputs + plus * targets) / (1 + plus)
        delta = delta - (outputs + minus * targets) / (1 + minus)
    for layer in reversed(range(len(kernels))):
        mean = inputs
        if layer > 0:
            r = delta @ kernels[layer].T
            a = pre_activations[layer - 1]
            plus, minus = f(a + up * r), f(a - down * r)
            mean = alpha * plus + (1 - alpha) * minus
        scale = -beta * len(inputs)
        grads.append({"kernel": mean.T @ delta / scale, "bias": delta.sum(0) / scale})
        if layer > 0:
            delta = plus - minus
    return grads[::-1]


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize(
    ("alpha", "beta"), list(itertools.product([0.0, 0.25, 0.5, 1.0], [0.01, 1.0]))
)
@pytest.mark.thinned(3)
def test_is_the_published_backward_sweep(alpha, beta, original):
    network, shape = dense()
    inputs, labels = data(shape)
    params = network.init(KEY, inputs)
    rule = energy.dual_propagation(
        network, energy.squared_error(), alpha=alpha, beta=beta, original=original
    )
    _, grads = rule(params, inputs, labels)
    options = {"alpha": alpha, "beta": beta, "original": original, "f": jnp.tanh}
    assert relative_error(grads, dyads(params, inputs, labels, **options)) < 1e-13


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_output_that_is_settled_is_another_beta(alpha):
    """The first paper's output for squared error, as the docstring says."""
    network, shape = dense()
    inputs, labels = data(shape)
    params, beta = network.init(KEY, inputs), 0.6
    options = {"alpha": alpha, "beta": beta, "original": True, "f": jnp.tanh}
    published = dyads(params, inputs, labels, proximal=True, **options)
    same = beta / ((1 + alpha * beta) * (1 - (1 - alpha) * beta))
    rule = energy.dual_propagation(
        network, energy.squared_error(), alpha=alpha, beta=same, original=True
    )
    _, grads = rule(params, inputs, labels)
    grads = jax.tree.map(lambda g: same / beta * g, grads)
    assert relative_error(grads, published) < 1e-13


def test_beta_is_per_sample():
    """Every example twice changes nothing: beta does not depend on the batch."""
    network, shape = dense()
    inputs, labels = data(shape)
    rule = energy.dual_propagation(network, energy.squared_error(), beta=0.5)
    params = rule.init(KEY, inputs)
    _, once = rule(params, inputs, labels)
    _, twice = rule(params, jnp.tile(inputs, (2, 1)), jnp.tile(labels, 2))
    assert relative_error(twice, once) < 1e-14


def test_with_kolen_pollack_transport():
    network, shape = dense("relu")
    inputs, labels = data(shape)
    rule = energy.dual_propagation(
        network,
        energy.cross_entropy(),
        beta=1e-6,
        transport=energy.transports.kolen_pollack(),
    )
    other = energy.kolen_pollack(network, energy.cross_entropy())
    params = other.init(KEY, inputs)
    assert (
        relative_error(
            rule(params, inputs, labels)[1], other(params, inputs, labels)[1]
        )
        < 1e-8
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"alpha": float("nan")}, r"alpha must lie in \[0, 1\], got nan"),
        ({"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        ({"beta": float("inf")}, "beta must be positive and finite, got inf"),
    ],
)
def test_what_is_refused(options, message):
    network = energy.feedforward([linen.Dense(2)])
    with pytest.raises(ValueError, match=message):
        energy.dual_propagation(network, energy.squared_error(), **options)
