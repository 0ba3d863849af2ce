"""Angles of known vectors, and norms against numpy's singular values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import Conv, Dense
from flax import linen

from bilevel import energy
from bilevel.energy import diagnostics

RNG = np.random.default_rng(0)


def layer(*values):
    """A kernel and a bias: they count as one vector."""
    return {"kernel": jnp.array([values[:-1]]), "bias": jnp.array(values[-1:])}


def test_cosines_and_angles_of_known_vectors():
    grads = [layer(1.0, 0.0, 0.0)] * 4 + [layer(1.0, 1.0, 1.0), layer(0.0, 0.0, 0.0)]
    reference = [
        layer(5.0, 0.0, 0.0),
        layer(0.0, 2.0, 1.0),
        layer(-0.1, 0.0, 0.0),
        layer(1.0, 0.0, 1.0),
        layer(1.0, 0.0, 0.0),
        layer(1.0, 2.0, 3.0),
    ]
    found = diagnostics.cosines(grads, reference)
    expected = [1, 0, -1, 0.5**0.5, 3**-0.5, 0]
    np.testing.assert_allclose(found, expected, atol=1e-14)
    found = diagnostics.angles(grads, reference)
    expected = [0, 90, 180, 45, np.degrees(np.arccos(3**-0.5)), 90]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_angles_are_no_nan_by_rounding():
    """A cosine a little above 1 has no arccosine."""
    vectors = [layer(*RNG.normal(size=4)) for _ in range(50)]
    scaled = jax.tree.map(lambda x: 3.3 * x, vectors)
    for one in (vectors, scaled):
        found = diagnostics.angles(one, vectors)
        assert not bool(jnp.any(jnp.isnan(found)))
        np.testing.assert_allclose(found, 0, atol=1e-5)


def test_layers_must_match():
    with pytest.raises(ValueError, match="expected gradients of 2 layers, got 1"):
        diagnostics.cosines([layer(1.0, 2.0)], [layer(1.0, 2.0)] * 2)


def test_lipschitz_is_the_largest_singular_value():
    widths = [(5, 7), (7, 4), (4, 3)]
    kernels = [RNG.normal(size=one) for one in widths]
    params = [
        {"kernel": jnp.asarray(k), "bias": jnp.full(k.shape[1], 100.0)} for k in kernels
    ]
    chain = energy.feedforward([Dense(n) for _, n in widths], "tanh")
    inputs = jnp.asarray(RNG.normal(size=(3, 5)))
    expected = [np.linalg.svd(k, compute_uv=False)[0] for k in kernels]
    norms = jax.jit(
        functools.partial(diagnostics.lipschitz, chain, params, num_steps=200)
    )
    found = norms(inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # whatever the biases
    assert np.all(found <= np.array(expected) * (1 + 1e-14))  # from below
    # States that are there already are not computed again: these are not used, for
    # the blocks are affine.
    states = [jnp.ones((3, n)) for _, n in widths]
    np.testing.assert_allclose(norms(inputs, states), found, rtol=1e-12)


def test_block_norm_of_a_convolution_behind_max_pooling():
    """The Jacobian at the first example, whose maxima are held."""
    pool = lambda s: linen.max_pool(s, (2, 2), (2, 2))
    chain = energy.feedforward([Conv(1, (1, 1)), [pool, Conv(2, (2, 2))]])
    kernel, bias = RNG.normal(size=(2, 2, 1, 2)), np.array([3.0, -3.0])
    own = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    state = jnp.asarray(RNG.normal(size=(2, 4, 4, 1)))
    block = chain.blocks[1]
    jacobian = jax.jit(jax.jacobian(lambda s: block(own, s)))(state[:1])
    expected = np.linalg.norm(np.reshape(jacobian, (8, 16)), 2)
    found = diagnostics.block_norm(block, own, state, num_steps=200)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_block_norm_of_zero():
    block = lambda params, s: s @ params + 1
    assert (
        float(diagnostics.block_norm(block, jnp.zeros((3, 2)), jnp.ones((1, 3)))) == 0
    )
