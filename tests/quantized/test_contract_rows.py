"""Every quantiser on leaves that are not alike.

One of each kind: of no weights, of one weight without an axis, of integers beside, a
million times larger than another, with a channel of zeros, and layers with a bias. Each
jitted as well as not, a second time with other values, and forwards as well as
backwards.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantized.quantizers import CASES, QUANTIZERS

from bilevel import quantized

KEY = jax.random.key(3)
WEIGHTS = jax.random.normal(KEY, (6, 5))
PARAMS = {
    "alike": {"kernel": WEIGHTS, "bias": jnp.ones(5), "n": jnp.arange(2)},
    "large": {"kernel": 2.0**20 * WEIGHTS},
    "zeros": {"kernel": WEIGHTS.at[:, 2].set(0.0)},
    "empty": {"kernel": jnp.zeros((0, 5))},
}
# Scales from the weights: what is large is rounded as what is not.
FOLLOW = {"ste", "ste_of_channels", "ste_posit", "xnor", "twn", "lsq", "learned_scale"}
FOLLOW |= {"learned_levels"}
BY_CHANNEL = {"ste_of_channels", "xnor", "twn", "lsq", "learned_scale"}
# A derivative by `jax.custom_vjp`, which JAX does not take forwards.
REVERSE_ONLY = {"adaste", "adaste_posit", "adaste_centred", "adaste_as_released"}
REVERSE_ONLY |= {"tanh_projection", "tanh_projection_nudged", "softmax_projection"}


def kernels(tree):
    return {name: tree[name]["kernel"] for name in PARAMS}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thinned(4)
def test_leaves_that_are_not_alike(name):
    q = QUANTIZERS[name]
    latent, state = quantized.init(q, PARAMS, key=KEY)
    apply = jax.jit(lambda latent: quantized.apply(q, state, latent))
    weights = apply(latent)
    assert jax.tree.structure(weights) == jax.tree.structure(PARAMS)
    for new, old in zip(jax.tree.leaves(weights), jax.tree.leaves(PARAMS), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert np.all(np.isfinite(new))
    for kept in ("bias", "n"):
        np.testing.assert_array_equal(weights["alike"][kept], PARAMS["alike"][kept])
    exported = quantized.export(q, state, latent)
    final = quantized.final(q, state, latent)
    for leaf, expected in kernels(final).items():
        np.testing.assert_array_equal(exported.params(latent)[leaf]["kernel"], expected)
    if name in FOLLOW:
        alike, large = final["alike"]["kernel"], final["large"]["kernel"]
        np.testing.assert_allclose(large, 2.0**20 * alike, rtol=1e-6)
    if name in BY_CHANNEL:
        assert np.abs(final["zeros"]["kernel"][:, 2]).max() < 1e-30
        rest = [0, 1, 3, 4]
        np.testing.assert_array_equal(
            final["zeros"]["kernel"][:, rest], final["alike"]["kernel"][:, rest]
        )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thinned(4)
def test_eager_and_other_values(name):
    q = QUANTIZERS[name]
    key = KEY if "drawn" in name or name == "bayesbinn" else None
    at = quantized.At(jnp.zeros((), jnp.int32), key)
    learned = q.learn(WEIGHTS)
    compiled = jax.jit(lambda x, learned: q.quantize(x, learned, at))
    for x in (WEIGHTS, -0.5 * WEIGHTS):
        latent = q.start(x, None)
        eager, jitted = q.quantize(latent, learned, at), compiled(latent, learned)
        np.testing.assert_allclose(jitted, eager, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_forwards_and_backwards(name):
    """<c, J v> = <J' c, v>, of what is learned, too; or JAX says that it cannot."""
    q = QUANTIZERS[name]
    at = quantized.At(jnp.zeros((), jnp.int32), KEY)
    point = q.start(WEIGHTS, None), q.learn(WEIGHTS)
    weights = lambda latent, learned: q.quantize(latent, learned, at)
    v = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), point)
    if name in REVERSE_ONLY:
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(weights, point, v)
        return

    @jax.jit
    def both(point, v, c):
        _, moved = jax.jvp(weights, point, v)
        pulled = jax.vjp(weights, *point)[1](c)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), pulled, v)
        return jnp.sum(c * moved), sum(jax.tree.leaves(products))

    forwards, backwards = both(point, v, jnp.sin(jnp.arange(30.0)).reshape(6, 5))
    np.testing.assert_allclose(forwards, backwards, rtol=1e-9)
    assert np.isfinite(forwards)


@pytest.mark.parametrize("name", CASES)
def test_a_scalar_leaf(name):
    """Is quantised, or refused where each channel has a scale."""
    q = QUANTIZERS[name]
    params = {"kernel": jnp.asarray(0.3)}
    if q.per_channel is not False:
        with pytest.raises(
            ValueError, match=r"kernel: a scale for each output channel"
        ):
            quantized.init(q, params)
        return
    latent, state = quantized.init(q, params, key=KEY)
    weights = jax.jit(lambda x: quantized.apply(q, state, x))(latent)["kernel"]
    assert weights.shape == ()
    assert np.isfinite(weights)
