"""States know their quantiser, channels their axes, sizes their scales.

Findings Q3 (channels), Q7 (arguments), Q9 (activations), Q10 (sizes), Q6 (blocks).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from bilevel import number_formats, quantized
from bilevel.quantized import scales

KEY = jax.random.key(0)
INT4, INT8 = number_formats.symmetric(4), number_formats.symmetric(8)
BY_CHANNEL = quantized.ste(INT4, scale=scales.of_channels(scales.max_abs))
AT = quantized.At(jnp.zeros((), jnp.int32))


def test_q3_channels_are_asked_for_where_the_layout_does_not_say():
    x = jnp.ones((2, 6, 16))
    attention = linen.MultiHeadDotProductAttention(num_heads=4)
    general = linen.DenseGeneral((4, 4))
    stacked = nnx.vmap(lambda k: nnx.Linear(4, 5, rngs=nnx.Rngs(k)))
    trees = {
        "attention": attention.init(KEY, x, x),
        "general": {"DenseGeneral_0": general.init(KEY, x)["params"]},
        "stacked": nnx.state(stacked(jax.random.split(KEY, 3)), nnx.Param),
        "embedding": linen.Embed(10, 6).init(KEY, jnp.zeros((), jnp.int32)),
        "attention in layers": {"query": {"kernel": jnp.ones((3, 16, 4, 4))}},
    }
    each = (BY_CHANNEL, quantized.lsq(INT4, per_channel=True), quantized.xnor())
    each += (quantized.twn(per_channel=True),)
    each += (quantized.learned_scale(INT4, scales.of_channels(scales.max_abs)),)
    each += (quantized.mixture([BY_CHANNEL, quantized.ste(INT4)]),)
    for name, params in trees.items():
        for q in each:
            with pytest.raises(ValueError, match="are output channels"):
                quantized.init(q, params, "kernel|embedding")
            assert name


def test_q3_each_head_has_its_scale():
    """The heads' sizes differ a hundredfold; as [in, out] they are rounded alike."""
    size = jnp.array([1.0, 0.1, 0.01, 1.0])[None, :, None]
    w = jax.random.normal(KEY, (16, 4, 4)) * size
    heads = quantized.ste(INT4, scale=scales.of_channels(scales.max_abs, (-2, -1)))
    found = []
    for q, kernel in ((heads, w), (BY_CHANNEL, w.reshape(16, 16))):
        latent, state = quantized.init(q, {"kernel": kernel})
        found.append(quantized.final(q, state, latent)["kernel"].reshape(w.shape))
    np.testing.assert_array_equal(*found)
    noise = jnp.sum((found[0] - w) ** 2, (0, 2)) / jnp.sum(w**2, (0, 2))
    assert np.all(noise < 0.02)


def test_q3_axes():
    w = jnp.ones((3, 4, 5))
    expected = {
        (-1,): (1, 1, 5),
        (0,): (3, 1, 1),
        (0, -1): (3, 1, 5),
        (-2, -1): (1, 4, 5),
    }
    for axes, shape in expected.items():
        for q in (
            quantized.lsq(INT4, per_channel=axes, scale=scales.max_abs),
            quantized.learned_scale(INT4, scales.of_channels(scales.max_abs, axes)),
        ):
            assert jax.tree.leaves(q.learn(w))[0].shape == shape
    for bad in (0, 1, "last", (), (1.0,), (True,), [0]):
        with pytest.raises(ValueError, match="must be False, True or a tuple of axes"):
            scales.max_abs(INT4, w, per_channel=bad)
    with pytest.raises(ValueError, match="have no axes"):
        scales.max_abs(INT4, w, per_channel=(3,))
    with pytest.raises(ValueError, match="a scale of its own"):
        scales.max_abs(INT4, w, per_channel=(0, 1, 2))


def test_q7_where_is_checked():
    params = {"kernel": jnp.full((4, 2), 0.3)}
    for where in (None, ["kernel"], 3):
        with pytest.raises(ValueError, match="where must be a regular expression"):
            quantized.init(BY_CHANNEL, params, where)
    for where in ("ker", re.compile("nel$"), lambda path, leaf: leaf.ndim == 2):
        assert list(quantized.init(BY_CHANNEL, params, where)[1].learned) == ["kernel"]


def test_q7_a_state_knows_its_quantiser():
    params = {"kernel": jnp.full((4, 2), 0.3)}
    ste, lsq = quantized.ste(INT4), quantized.lsq(INT4)
    (a, of_ste), (b, of_lsq) = (quantized.init(q, params) for q in (ste, lsq))
    wrong = [(lsq, of_ste, a), (ste, of_lsq, b), (quantized.lsq(INT8), of_lsq, b)]
    for q, state, latent in wrong:
        for use in (quantized.apply, quantized.final, quantized.project):
            with pytest.raises(ValueError, match="this is the state of"):
                use(q, state, latent)
        with pytest.raises(ValueError, match="this is the state of"):
            quantized.export(q, state, latent)
    # The same made again, other leaves to learn, and one's own state, are taken.
    again = quantized.ste(number_formats.symmetric(4))
    quantized.apply(again, quantized.advance(of_ste), a)
    own = quantized.State(jnp.zeros((), jnp.int32), None, {"kernel": ()})
    quantized.apply(ste, own, a)
    # It is a part of the structure: jit, vmap and maps over leaves keep it.
    mapped = jax.tree.map(lambda x: x + 1, of_lsq)
    assert (
        mapped.quantizer == of_lsq.quantizer == jax.jit(lambda s: s)(of_lsq).quantizer
    )


@pytest.mark.thorough
def test_q9_the_gradient_of_a_scale_does_not_shrink_with_the_batch():
    """Of a mean loss: of one example, and of the same many times."""
    q = quantized.lsq(number_formats.affine(8, signed=False))
    a = jnp.abs(jax.random.normal(KEY, (1, 64)))
    learned = quantized.LearnedScale(jnp.asarray(0.02))

    def slope(x, **settings):
        def loss(learned):
            return quantized.activation(q, x, learned, **settings).sum() / x.shape[0]

        return float(jax.grad(loss)(learned).scale)

    single, many = slope(a), slope(jnp.tile(a, (100, 1)))
    assert single != 0
    np.testing.assert_allclose(many, single, rtol=1e-6)
    alone = jax.grad(lambda l: quantized.activation(q, a[0], l).sum())(learned).scale
    np.testing.assert_allclose(alone, single, rtol=1e-6)
    over_time = slope(jnp.tile(a[:, None], (10, 5, 1)), batch_axes=2) / 5
    np.testing.assert_allclose(over_time, single, rtol=1e-6)
    # By its definition: N = 64 features.
    u = np.asarray(a) / 0.02
    ds = np.where(u <= 255, np.round(u) - u, 255).sum() / np.sqrt(64 * 255)
    np.testing.assert_allclose(single, ds, rtol=1e-4)
    with pytest.raises(ValueError, match="batch_axes must be 0 or a number"):
        quantized.activation(q, a, learned, batch_axes=-1)


def test_q10_the_budget_is_the_size_of_the_export():
    each = [
        quantized.ste(
            number_formats.symmetric(b), scale=scales.of_channels(scales.max_abs)
        )
        for b in (2, 4)
    ]
    params = {"kernel": jax.random.normal(KEY, (9, 64), jnp.float32)}
    params["bias"] = jnp.zeros(3, jnp.float32)
    latent, state = quantized.init(quantized.mixture(each), params)
    sizes = [9 * 64 * bits // 8 + 4 * 64 + 12 for bits in (2, 4)]
    with pytest.raises(ValueError, match=f"smallest choice has {sizes[0]} bytes"):
        quantized.decide(each, state, latent, max_bytes=300)
    for k, size in enumerate(sizes):
        # The larger one is as likely, and taken once it fits.
        logits = jnp.array([0.0, 1.0])
        state.learned["kernel"] = state.learned["kernel"]._replace(logits=logits)
        found = quantized.decide(each, state, latent, max_bytes=size)
        first, *rest = found.parts
        assert found.choice == {"kernel": k}
        whole = quantized.export(*first, latent, *rest)
        assert found.num_bytes == whole.num_bytes == size
    shares = np.asarray(jax.nn.softmax(logits))
    relaxed = quantized.expected_bytes(each, state, latent)
    np.testing.assert_allclose(relaxed, shares @ sizes, rtol=1e-6)


def test_q6_scales_of_blocks_are_counted_by_block():
    """A power of two for each block of 32 rows, spread over the weights."""

    def of_blocks(number_format, w):
        del number_format
        blocks = jnp.abs(w).reshape(-1, 32, w.shape[-1]).max(1, keepdims=True)
        s = 2.0 ** (jnp.floor(jnp.log2(blocks)) - 2)
        return jnp.broadcast_to(s, (w.shape[0] // 32, 32, w.shape[-1])).reshape(w.shape)

    fp4 = number_formats.by_name("float4_e2m1fn")
    q = quantized.ste(fp4, scale=of_blocks)
    w = jax.random.normal(KEY, (64, 32), jnp.float32)
    latent, state = quantized.init(q, {"kernel": w})
    made = quantized.export(q, state, latent)
    assert made.quantized["kernel"].scale.shape == (2, 32)
    assert made.num_bytes == 64 * 32 // 2 + 64  # of powers of two the exponent
    final = quantized.final(q, state, latent)["kernel"]
    np.testing.assert_array_equal(made.params(latent)["kernel"], final)
    ours = scales.of_blocks(32)(fp4, w)
    np.testing.assert_array_equal(ours, of_blocks(fp4, w))
    # What is no power of two stays a float.
    odd = quantized.ste(fp4, scale=lambda f, w: 0.3 * of_blocks(f, w))
    latent, state = quantized.init(odd, {"kernel": w})
    made = quantized.export(odd, state, latent)
    assert made.num_bytes == 64 * 32 // 2 + 64 * 4
    # One that differs for each weight stays what it is.
    each = quantized.ste(INT4, scale=jnp.arange(1.0, 7.0).reshape(2, 3))
    latent, state = quantized.init(each, {"kernel": jnp.ones((2, 3))})
    scale = quantized.export(each, state, latent).quantized["kernel"].scale
    np.testing.assert_array_equal(scale, np.arange(1.0, 7.0).reshape(2, 3))


@pytest.mark.thorough
def test_q6_blocks_are_those_of_microscaling(tmp_path):
    """The largest of a block: 957 with e4m3fn becomes 896 if the scale is floored."""
    e4m3 = number_formats.by_name("float8_e4m3fn", saturating=True)
    fp4 = number_formats.by_name("float4_e2m1fn")
    for rounding, scale, expected in (("floor", 2.0, 896.0), ("ceil", 4.0, 960.0)):
        rule = scales.of_blocks(4, axis=0, rounding=rounding)
        w = jnp.array([957.0, 1.0, 0.0, -3.0], jnp.float32)
        np.testing.assert_array_equal(rule(e4m3, w), np.full(4, scale))
        found = quantized.ste(e4m3, scale=rule).quantize(w, (), AT)
        assert float(found[0]) == expected
    # By the definitions, over random blocks, and zeros.
    w = jnp.exp(3 * jax.random.normal(KEY, (8, 6), jnp.float32)).at[:4, 2].set(0.0)
    for f, top in ((e4m3, 448.0), (fp4, 6.0)):
        most = np.abs(np.asarray(w, np.float64)).reshape(2, 4, 6).max(1)
        with np.errstate(divide="ignore"):
            floor = 2.0 ** (np.floor(np.log2(most)) - np.floor(np.log2(top)))
            ceil = 2.0 ** np.ceil(np.log2(most / top))
        for rounding, exact in (("floor", floor), ("ceil", ceil)):
            exact = np.where(most > 0, exact, 1.0)
            found = scales.of_blocks(4, 0, rounding)(f, w)
            np.testing.assert_array_equal(found, np.repeat(exact, 4, 0))
    q = quantized.ste(fp4, scale=scales.of_blocks(4))
    latent, state = quantized.init(q, {"kernel": w})
    made = quantized.export(q, state, latent)
    assert made.num_bytes == 48 // 2 + 12
    made.save(tmp_path / "blocks")
    again = quantized.load_export(tmp_path / "blocks").params(latent)["kernel"]
    np.testing.assert_array_equal(again, made.params(latent)["kernel"])
    with pytest.raises(ValueError, match="blocks of 3 do not divide the axis 0"):
        scales.of_blocks(3)(fp4, w)
    with pytest.raises(ValueError, match='must be "floor" or "ceil"'):
        scales.of_blocks(3, rounding="nearest")
