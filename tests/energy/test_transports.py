"""Feedback weights: where each rule is back-propagation, and what makes it so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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

COST = energy.cross_entropy()


def exact_gradient(network, params, inputs, labels):
    return energy.back_propagation(network, COST)(params, inputs, labels)[1]


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("rule", [energy.feedback_alignment, energy.kolen_pollack])
@pytest.mark.thinned(3)
def test_with_the_blocks_own_weights_it_is_back_propagation(rule, make):
    network, shape = make()
    inputs, labels = data(shape)
    params = rule(network, COST).init(KEY, inputs).forward
    aligned = energy.Aligned(params, params[1:])
    _, grads = rule(network, COST)(aligned, inputs, labels)
    expected = exact_gradient(network, params, inputs, labels)
    assert relative_error(grads.forward, expected) < 1e-14


@pytest.mark.parametrize("rule", [energy.feedback_alignment, energy.kolen_pollack])
def test_feedback_is_drawn_as_the_blocks_are(rule):
    network, shape = dense()
    params = rule(network, COST).init(KEY, jnp.ones(shape))
    for own, back in zip(params.forward[1:], params.feedback, strict=True):
        assert own["kernel"].shape == back["kernel"].shape
        assert not jnp.any(own["kernel"] == back["kernel"])
        sizes = [float(jnp.std(one["kernel"])) for one in (own, back)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.3)


def test_fixed_feedback_gets_no_gradient_and_the_top_block_the_true_one():
    network, shape = dense()
    inputs, labels = data(shape)
    rule = energy.feedback_alignment(network, COST)
    params = rule.init(KEY, inputs)
    _, grads = rule(params, inputs, labels)
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(grads.feedback))
    expected = exact_gradient(network, params.forward, inputs, labels)
    assert relative_error(grads.forward[-1], expected[-1]) < 1e-14
    assert relative_error(grads.forward[0], expected[0]) > 0.1


@pytest.mark.thorough
def test_kolen_pollack_weights_meet_at_the_published_rate():
    """W_t - B_t = (1 - rate * decay)^t (W_0 - B_0) under SGD."""
    rate, decay, num_steps = 0.1, 0.05, 20
    network, shape = dense()
    inputs, labels = data(shape)
    rule = energy.kolen_pollack(network, COST)
    params = rule.init(KEY, inputs)
    gap = lambda p: jax.tree.map(jnp.subtract, p.forward[1:], p.feedback)
    before = gap(params)
    sgd = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))
    state = sgd.init(params)
    for _ in range(num_steps):
        _, grads = rule(params, inputs, labels)
        updates, state = sgd.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    expected = jax.tree.map(lambda x: (1 - rate * decay) ** num_steps * x, before)
    assert relative_error(gap(params), expected) < 1e-12


def test_sign_symmetry_is_exact_for_weights_of_one_size():
    network, shape = dense()
    inputs, labels = data(shape)
    params = jax.tree.map(lambda w: 0.3 * jnp.sign(w + 1e-9), network.init(KEY, inputs))
    _, grads = energy.sign_symmetry(network, COST)(params, inputs, labels)
    expected = exact_gradient(network, params, inputs, labels)
    assert relative_error(grads, expected) < 1e-14


def test_direct_feedback_alignment_is_exact_for_linear_networks():
    """With B_k = (W_L ... W_{k+1})^T; with tanh for the top hidden layer alone."""
    for activation, num_exact in (("identity", 3), ("tanh", 2)):
        network, shape = dense(activation)
        inputs, labels = data(shape)
        rule = energy.direct_feedback_alignment(network, COST)
        params = rule.init(KEY, inputs)
        second, third = (one["kernel"] for one in params.forward[1:])
        params = params._replace(feedback=[(second @ third).T, third.T])
        _, grads = rule(params, inputs, labels)
        expected = exact_gradient(network, params.forward, inputs, labels)
        found = [
            relative_error(own, true) < 1e-14
            for own, true in zip(grads.forward, expected, strict=True)
        ]
        assert found == [number >= 3 - num_exact for number in range(3)]


@pytest.mark.thorough
def test_direct_feedback_through_convolutions():
    network, shape = convolutional("identity")
    inputs, labels = data(shape)
    rule = energy.direct_feedback_alignment(network, COST)
    params = rule.init(KEY, inputs)
    assert [one.shape for one in params.feedback] == [(5, 8, 8, 4), (5, 4, 4, 3)]
    bounds = [float(jnp.abs(one).max()) for one in params.feedback]
    # The largest of some hundred uniform numbers.
    np.testing.assert_allclose(bounds, [1 / 16, 1 / np.sqrt(48)], rtol=0.03)
    # The true feedback of the layer below the top, one example at a time.
    top = lambda a: network.blocks[2](params.forward[2], a[None])[0]
    state = network.blocks[0](params.forward[0], inputs)
    state = network.blocks[1](params.forward[1], state)
    true = jax.vmap(jax.jacobian(top))(state)
    one = data(shape)[0][:1], labels[:1]
    params = params._replace(feedback=[params.feedback[0], true[0]])
    _, grads = rule(params, *one)
    expected = exact_gradient(network, params.forward, *one)
    assert relative_error(grads.forward[1], expected[1]) < 1e-13


def test_direct_feedback_wants_a_vector():
    network = energy.feedforward([linen.Conv(2, (3, 3))])
    rule = energy.direct_feedback_alignment(network, COST)
    with pytest.raises(ValueError, match=r"expected outputs \[B, n\], got the shape"):
        rule.init(KEY, jnp.ones((2, 4, 4, 1)))


@pytest.mark.parametrize(
    "rule", [energy.feedback_alignment, energy.kolen_pollack, energy.sign_symmetry]
)
def test_pooling_goes_back_to_the_maxima_of_the_forward_pass(rule):
    """Not to those that the feedback weights would have."""
    pool = lambda s: linen.max_pool(s, (2, 2), (2, 2))
    flat = lambda s: s.reshape(len(s), -1)
    conv = lambda n: Conv(n, (3, 3))
    chain = energy.feedforward(
        [[conv(4), pool], [conv(3), pool], [flat, Dense(5)]], "tanh"
    )
    inputs, labels = data((6, 8, 8, 2))
    made = rule(chain, COST)
    params = made.init(KEY, inputs)
    is_own = isinstance(params, energy.Aligned)
    forward = params.forward if is_own else params
    weights = energy.transports.sign_symmetry().weights
    back = params.feedback if is_own else [weights(w, None) for w in forward[1:]]
    _, grads = jax.jit(made.value_and_grad)(params, inputs, labels, None)

    @jax.jit
    def by_hand():
        """Pooling and layers by themselves; layers go back with other weights."""
        layers = [lambda w, s, n=n: conv(n).apply({"params": w}, s) for n in (4, 3)]
        below = layers[0](forward[0], inputs)
        first, pull_first = jax.vjp(pool, below)
        middle, pull_middle = jax.vjp(pool, layers[1](forward[1], jnp.tanh(first)))
        state = jnp.tanh(middle).reshape(6, -1)
        outputs = state @ forward[2]["kernel"] + forward[2]["bias"][None]
        value = lambda o: jnp.mean(COST(o, labels))
        q = (jax.grad(value)(outputs) @ back[1]["kernel"].T).reshape(middle.shape)
        (q,) = pull_middle(q / jnp.cosh(middle) ** 2)
        (q,) = jax.vjp(lambda s: layers[1](back[0], s), jnp.tanh(first))[1](q)
        (q,) = pull_first(q / jnp.cosh(first) ** 2)
        return jax.vjp(lambda w: layers[0](w, inputs), forward[0])[1](q)[0]

    found = grads.forward if is_own else grads
    assert relative_error(found[0], by_hand()) < 1e-12
