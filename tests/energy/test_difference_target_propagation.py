"""Difference target propagation: Gauss-Newton targets, and learned inverses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import KEY, Conv, Dense, convolutional, data, dense, relative_error
from flax import linen

from bilevel import energy
from bilevel.energy.learning_rule import Aligned
from bilevel.energy.rules.difference_target_propagation import (
    Inverse,
    difference_target_propagation,
)

COST = energy.cross_entropy()
SIZE = 5


def linear(num_blocks=4):
    """A linear network with square blocks, and the parameters with exact inverses."""
    blocks = [Dense(SIZE) for _ in range(num_blocks)]
    network = energy.feedforward(blocks, "identity")
    rule = difference_target_propagation(network, COST, rate=0.3, noise=0.0)
    params = rule.init(KEY, jnp.ones((1, SIZE), jnp.float64))
    keys = jax.random.split(KEY, num_blocks)
    forward = [
        {
            "kernel": jnp.eye(SIZE) + 0.2 * jax.random.normal(key, (SIZE, SIZE)),
            "bias": jax.random.normal(key, (SIZE,)),
        }
        for key in keys
    ]
    inverses = []
    for one in forward[1:-1]:
        kernel = jnp.asarray(np.linalg.inv(one["kernel"]))
        inverses.append(Inverse(kernel, -one["bias"] @ kernel))
    assert len(params.feedback) == len(inverses)
    return rule, network, Aligned(forward, inverses)


@pytest.mark.parametrize("rate", [1e-3, 2.0])
def test_targets_of_exact_inverses_are_those_of_gauss_and_newton(rate):
    """With one example the gradient of a bias is (s_k - t_k) / rate."""
    _, network, params = linear()
    inputs, labels = data((1, SIZE))
    rule = difference_target_propagation(network, COST, rate=rate, noise=0.0)
    _, grads = rule(params, inputs, labels)
    states = network.pre_activations(params.forward, inputs)
    gaps = [rate * one["bias"][None] for one in grads.forward[:-1]]
    targets = [s - gap for s, gap in zip(states, gaps, strict=False)]
    for k in (0, 1):
        reached = network.blocks[k + 1](params.forward[k + 1], targets[k])
        np.testing.assert_allclose(reached, targets[k + 1], rtol=0, atol=1e-13)
    kernels = [one["kernel"] for one in params.forward]
    error = (jax.nn.softmax(states[-1]) - jax.nn.one_hot(labels, SIZE)) @ kernels[3].T
    expected = [error @ np.linalg.inv(kernels[1] @ kernels[2])]
    expected += [error @ np.linalg.inv(kernels[2]), error]
    found = [gap / rate for gap in gaps]
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rate", [0.01, 1.0])
@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.thinned(3)
def test_the_last_two_blocks_have_their_true_gradients(make, rate):
    network, shape = make()
    inputs, labels = data(shape)
    rule = difference_target_propagation(network, COST, rate=rate)
    params = rule.init(KEY, inputs)
    (value, aux), grads = rule(params, inputs, labels, KEY)
    exact = energy.back_propagation(network, COST)
    (expected, other), full = exact(params.forward, inputs, labels)
    assert relative_error(grads.forward[1:], full[1:]) < 1e-12
    assert relative_error(grads.forward[0], full[0]) > 0.3
    assert float(value) == pytest.approx(float(expected), rel=1e-14)
    np.testing.assert_allclose(aux.outputs, other.outputs, rtol=1e-14)


@pytest.mark.parametrize("widths", [(), (7,)])
def test_without_inverses_it_is_back_propagation(widths):
    network, shape = dense(widths=widths)
    inputs, labels = data(shape)
    rule = difference_target_propagation(network, COST)
    params = rule.init(KEY, inputs)
    assert params.feedback == []
    _, grads = rule(params, inputs, labels)  # nothing is drawn: no key
    _, full = energy.back_propagation(network, COST)(params.forward, inputs, labels)
    assert relative_error(grads.forward, full) < 1e-13


def test_gradients_are_the_published_ones():
    """Three blocks of tanh, by hand, without noise."""
    rate = 0.4
    network, shape = dense()
    inputs, labels = data(shape)
    rule = difference_target_propagation(network, COST, rate=rate, noise=0.0)
    params = rule.init(KEY, inputs)
    params.feedback[0] = params.feedback[0]._replace(bias=jnp.linspace(-1, 1, 16))
    _, grads = rule(params, inputs, labels)
    (one, two, three), (inverse,) = jax.tree.map(np.asarray, params)
    below = np.tanh(inputs @ one["kernel"] + one["bias"][None])
    above = np.tanh(below @ two["kernel"] + two["bias"][None])
    outputs = above @ three["kernel"] + three["bias"][None]
    error = np.asarray(jax.nn.softmax(outputs) - jax.nn.one_hot(labels, 5))
    invert = lambda s: np.tanh(s @ inverse.kernel + inverse.bias[None])
    target = above - rate * error @ three["kernel"].T
    target = below + invert(target) - invert(above)
    delta = (below - target) * (1 - below**2) / (rate * len(inputs))
    expected = {"kernel": inputs.T @ delta, "bias": delta.sum(0)}
    assert relative_error(grads.forward[0], expected) < 1e-12
    found = invert(above)
    delta = (found - below) * (1 - found**2) / len(inputs)
    expected = Inverse(above.T @ delta, delta.sum(0))
    assert relative_error(grads.feedback[0], expected) < 1e-13


@pytest.mark.thorough
def test_the_noise_has_its_standard_deviation():
    """In the mean it adds noise^2 W^T (W V - 1) to the inverse's gradient."""
    rule, network, params = linear(3)
    inputs, labels = data((100, SIZE))
    params.feedback[0] = Inverse(jnp.eye(SIZE), jnp.zeros(SIZE))
    noisy = difference_target_propagation(network, COST, noise=0.5)
    keys = jax.random.split(KEY, 500)
    kernels = jax.vmap(
        lambda key: noisy(params, inputs, labels, key)[1].feedback[0].kernel
    )(keys)
    still = rule(params, inputs, labels)[1].feedback[0].kernel
    kernel = params.forward[1]["kernel"]
    expected = 0.25 * kernel.T @ (kernel - jnp.eye(SIZE))
    spread = jnp.std(kernels, axis=0) / np.sqrt(len(keys))
    gap = jnp.mean(kernels, axis=0) - still - expected
    # The largest of 25 entries, in standard errors.
    assert float(jnp.max(jnp.abs(gap / spread))) < 4.5
    assert np.linalg.norm(expected) / np.linalg.norm(spread) > 20


@pytest.mark.thorough
def test_inverses_are_learned():
    """Of a linear block, the inverse itself; the reconstruction comes for free."""
    _, network, exact = linear(3)
    inputs, labels = data((20, SIZE))
    rule = difference_target_propagation(network, COST, noise=1.0)
    start = rule.init(KEY, inputs).feedback

    @jax.jit
    def step(feedback, key):
        params = Aligned(exact.forward, feedback)
        grads = rule(params, inputs, labels, key)[1].feedback
        return jax.tree.map(lambda x, g: x - 0.2 * g, feedback, grads)

    learned = start
    for key in jax.random.split(KEY, 600):
        learned = step(learned, key)
    assert relative_error(start, exact.feedback) > 0.5
    assert relative_error(learned, exact.feedback) < 1e-3


def test_feedback_of_convolutions_is_dense_and_learns():
    pool = lambda s: linen.max_pool(s, (2, 2), (2, 2))
    flatten = lambda s: s.reshape(len(s), -1)
    convolutions = [Conv(4, (3, 3)), [pool, Conv(3, (3, 3))]]
    network = energy.feedforward(
        [*convolutions, [flatten, Dense(12)], Dense(SIZE)], "tanh"
    )
    inputs, labels = data((6, 8, 8, 2))
    rule = difference_target_propagation(network, COST, noise=0.0)
    params = rule.init(KEY, inputs)
    shapes = [one.kernel.shape for one in params.feedback]
    assert shapes == [(4 * 4 * 3, 8 * 8 * 4), (12, 4 * 4 * 3)]

    def losses(params):
        states = [jnp.tanh(a) for a in network.pre_activations(params.forward, inputs)]
        found = []
        for k, inverse in enumerate(params.feedback):
            flat = [s.reshape(len(s), -1) for s in states[k : k + 2]]
            gap = jnp.tanh(flat[1] @ inverse.kernel + inverse.bias[None]) - flat[0]
            found.append(float(jnp.sum(gap**2)) / (2 * len(inputs)))
        return np.array(found)

    before = losses(params)
    update = jax.jit(
        lambda params: params._replace(
            feedback=jax.tree.map(
                lambda x, g: x - 0.1 * g,
                params.feedback,
                rule(params, inputs, labels)[1].feedback,
            )
        )
    )
    for _ in range(30):
        params = update(params)
    assert np.all(losses(params) < before / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate must be positive and finite, got 0.0"),
        ({"rate": float("nan")}, "rate must be positive and finite, got nan"),
        ({"noise": -1.0}, "noise must be finite and >= 0, got -1.0"),
        ({"noise": float("inf")}, "noise must be finite and >= 0, got inf"),
    ],
)
def test_what_is_refused(options, message):
    network, _ = dense()
    with pytest.raises(ValueError, match=message):
        difference_target_propagation(network, COST, **options)


def test_noise_without_a_key():
    network, shape = dense()
    inputs, labels = data(shape)
    rule = difference_target_propagation(network, COST)
    params = rule.init(KEY, inputs)
    with pytest.raises(ValueError, match=r"needs a key; call rule\(params"):
        rule(params, inputs, labels)
