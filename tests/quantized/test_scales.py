"""Scales from the weights: near the best at first, and safe at the ends of the floats.

Findings Q1 (starts), Q4 (channels of zeros), Q8 (overflow).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantized.starts import FORMATS, below_best

from bilevel import number_formats, quantized
from bilevel.quantized import scales

# One of each kind; the others are tested with the variants.
SOME = {"unsigned4", "binary", "posit<8,2>"}
CASES = [
    pytest.param(name, marks=[] if name in SOME else pytest.mark.thorough)
    for name in FORMATS
]
AT = quantized.At(jnp.zeros((), jnp.int32))
POSIT = number_formats.posit(8, 2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thinned(3)
def test_q1_default_starts_are_within_3_db_of_the_best_scale(name):
    behind = below_best(name)
    # max_abs clips nothing, which costs few levels more.
    limits = {key: 3.0 for key in behind if key != "max_abs"}
    if number_formats.by_name(name).bits > 4:
        limits["max_abs"] = 3.0
    for key, limit in limits.items():
        assert behind[key] < limit, (key, behind)


def test_q1_anchors():
    """Where levels are finest, from the levels alone: relative gaps are least there."""
    for name in ("int4", "affine4", "ternary", "binary", "posit<6,1>", "posit<8,2>"):
        f = number_formats.by_name(name)
        anchor = scales.anchor_of(f)
        levels = f.levels()
        inside = np.abs(levels)[(np.abs(levels) > 0)]
        inside = np.unique(inside)
        gaps = np.diff(inside) / inside[:-1] if len(inside) > 1 else np.array([])
        assert anchor in inside
        above = inside[:-1] >= anchor
        if above.any():  # beyond it levels thin out
            assert gaps[above].min() > gaps.min()
    assert scales.anchor_of(number_formats.posit(8, 0)) == 2.0
    assert scales.anchor_of(POSIT) == 16.0
    assert scales.anchor_of(number_formats.by_name("float8_e4m3fn")) == 448.0
    assert scales.anchor_of(number_formats.by_name("bfloat16")) == 1024.0
    half = number_formats.scaled(POSIT, 0.5)
    assert scales.anchor_of(half) == 8.0


def test_q1_gradient_of_a_posit_scale_is_not_small():
    """Qp is the anchor, not 2^24: f = 1 / sqrt(N Qp)."""
    x = 0.05 * jax.random.normal(jax.random.key(0), (64,))
    slopes = []
    for scaling in (True, False):
        q = quantized.lsq(POSIT, scale_gradient=scaling)
        learned = quantized.LearnedScale(jnp.asarray(0.05))
        total = lambda s, q=q: jnp.sum(x * q.quantize(x, s, AT))
        slopes.append(jax.grad(total)(learned).scale)
    np.testing.assert_allclose(slopes[0] / slopes[1], 1 / np.sqrt(64 * 16), rtol=1e-6)


@pytest.mark.thorough
def test_q4_a_channel_of_zeros_stays_zero():
    w = jnp.concatenate([jnp.zeros((4, 1)), jnp.full((4, 1), 0.05)], 1)
    rules = (scales.mean_abs, scales.max_abs, scales.least_squares)
    binary = number_formats.binary()
    each = [quantized.clipped_ste(binary, scale=scales.of_channels(r)) for r in rules]
    of_means = quantized.reste(scale=scales.of_channels(scales.mean_abs))
    apply = jax.jit(quantized.apply, static_argnums=0)
    for q in (*each, quantized.xnor(), of_means):
        latent, state = quantized.init(q, {"kernel": w})
        exported = quantized.export(q, state, latent)
        for found in (apply(q, state, latent), exported.params(latent)):
            assert np.abs(found["kernel"][:, 0]).max() < 1e-30
            np.testing.assert_allclose(found["kernel"][:, 1], 0.05, rtol=0.02)


@pytest.mark.thorough
def test_q4_a_channel_of_zeros_can_leave_them():
    """By the published chain rule through a = mean |x|, with sgn(0) = 1."""
    q, g = quantized.xnor(), jnp.array([[1.0], [2.0], [-1.0]])
    _, pull = jax.vjp(lambda x: q.quantize(x, (), AT), jnp.zeros((3, 1)))
    np.testing.assert_allclose(pull(g)[0], np.full((3, 1), 2 / 3), rtol=1e-6)
    ste = quantized.ste(number_formats.binary(), scale=scales.mean_abs)
    _, pull = jax.vjp(lambda x: ste.quantize(x, (), AT), jnp.zeros((3, 1)))
    np.testing.assert_allclose(pull(g)[0], g, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_q8_scales_at_the_ends_of_the_floats(dtype):
    """Times a power of two all scales are multiplied by it, exactly."""
    info, f = jnp.finfo(dtype), number_formats.symmetric(4)
    w = jnp.array([[1.5, 0.25], [-0.5, 0.0], [0.125, -1.0]], dtype)
    rules = (scales.max_abs, scales.mean_abs, scales.least_squares)
    rules += (scales.published_for_lsq, scales.full_range)
    each = (quantized.twn(), quantized.xnor(), quantized.ste(f, scale=scales.mean_abs))

    @jax.jit
    def all_of(w):
        found = [r(f, w, per_channel=p) for r in rules for p in (False, True)]
        return found, [q.quantize(w, (), AT) for q in each]

    for power in (2.0 ** (info.maxexp - 3), 2.0 ** (info.minexp + 20)):
        unit = jnp.asarray(power, dtype)
        far, plain = all_of(w * unit), all_of(w)
        for a, b in zip(jax.tree.leaves(far), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(a, b * unit)


def test_q8_one_large_weight():
    w = jnp.array([1e30, 0.0, 0.0, 0.0], jnp.float32).reshape(4, 1)
    f = number_formats.symmetric(4)
    found = number_formats.scaled(f, scales.least_squares(f, w)).round(w)
    np.testing.assert_allclose(found, w, rtol=0.02)
