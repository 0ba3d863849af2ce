"""Quantisers with a surrogate gradient: forward and backward against the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quantized.quantizers import BINARY, INT4, POSIT, TERNARY, at

from bilevel import number_formats, quantized
from bilevel.quantized import scales

RNG = np.random.default_rng(0)
# Also on the thresholds.
X = np.append(
    RNG.normal(scale=0.9, size=(40, 3)), [[0.1, -0.1, 1.5], [1.0, -1.0, 0]], 0
)
G = RNG.normal(size=X.shape)
SIGN = np.where(X < 0, -1.0, 1.0)
SIZE = abs(X)


def both(quantizer, x=X, g=G, learned=(), where=None):
    """The weights, and the pull-back of g to latent weights and what is learned."""
    where = at() if where is None else where

    @jax.jit
    def run(x, learned, g):
        weights = lambda x, learned: quantizer.quantize(x, learned, where)
        value, pull = jax.vjp(weights, x, learned)
        return value, *pull(g)

    value, dx, dlearned = run(jnp.asarray(x), learned, jnp.asarray(g))
    return np.asarray(value), np.asarray(dx), dlearned


def near(got, expected, rtol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("levels", [BINARY, TERNARY, INT4, POSIT], ids=lambda f: f.name)
def test_ste_and_clipped_ste(levels):
    for scale in (None, 0.1):
        s = 1.0 if scale is None else scale
        value, dx, _ = both(quantized.ste(levels, scale=scale))
        expected = s * levels.round(jnp.asarray(X * (1 / s)))
        near(value, expected)
        near(dx, G)
        value, dx, _ = both(quantized.clipped_ste(levels, scale=scale))
        near(value, expected)
        least, most = levels.range
        near(dx, G * ((least * s - 1e-12 <= X) & (most * s + 1e-12 >= X)))


def test_scales_are_constants_for_gradients():
    value, dx, _ = both(quantized.ste(INT4, scale=scales.max_abs))
    s = SIZE.max() / 7
    near(value, s * np.clip(np.round(X * (1 / s)), -7, 7))
    near(dx, G)
    channels = scales.of_channels(scales.max_abs)
    value, dx, _ = both(quantized.ste(INT4, scale=channels))
    s = SIZE.max(0, keepdims=True) / 7
    near(value, s * np.round(X * (1 / s)))
    near(dx, G)


@pytest.mark.thorough
def test_scale_of_the_least_squares():
    weights = jnp.asarray(RNG.normal(size=(1000, 2)) * [[1.0, 0.01]])
    fit = jax.jit(scales.least_squares, static_argnums=0)
    names = ["int4", "posit<8,0>", "float4_e2m1fn"]
    for levels in map(number_formats.by_name, names):
        x = weights[:, :1]
        error = lambda s, fmt=levels, x=x: float(
            jnp.sum((number_formats.scaled(fmt, s).round(x) - x) ** 2)
        )
        own = fit(levels, x)
        # Within 0.1 dB of a finer search.
        assert error(own) < error(number_formats.best_scale(levels, x)) * 1.025
    both_ways = scales.least_squares(INT4, weights, per_channel=True)
    assert both_ways.shape == (1, 2)
    near(both_ways[0, 0], fit(INT4, weights[:, :1]))


def test_scale_of_nothing_is_one():
    zero = jnp.zeros((3, 2))
    for scale in (scales.max_abs, scales.mean_abs, scales.least_squares):
        assert float(scale(INT4, zero)) == 1.0
        value, _, _ = both(
            quantized.ste(INT4, scale=scale), np.zeros((3, 2)), G[:3, :2]
        )
        near(value, 0)


def test_binary_connect():
    value, dx, _ = both(quantized.binary_connect())
    near(value, SIGN)
    near(dx, G)
    quantizer = quantized.binary_connect(stochastic=True)
    near(quantizer.project(jnp.asarray(X), at()), np.clip(X, -1, 1))
    # P(w = 1) = clip((x + 1) / 2, 0, 1), equation 2.
    x = jnp.linspace(-1.5, 1.5, 13)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: quantizer.quantize(x, (), at(0, key))))
    share = np.mean(np.asarray(draw(keys)) == 1, 0)
    expected = np.clip((np.asarray(x) + 1) / 2, 0, 1)
    assert np.all(
        abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 4000)
    )


def test_approx_sign():
    value, dx, _ = both(quantized.approx_sign())
    near(value, SIGN)
    near(dx, G * (2 - 2 * SIZE) * (SIZE <= 1))


def test_swish_sign():
    c = 5.0
    value, dx, _ = both(quantized.swish_sign(c))
    near(value, SIGN)
    near(dx, G * c * (2 - c * X * np.tanh(c * X / 2)) / (1 + np.cosh(c * X)), 1e-10)
    # It is the derivative of what the docstring says.
    sigma = lambda x: 1 / (1 + np.exp(-c * x))
    soft = lambda x: 2 * sigma(x) * (1 + c * x * (1 - sigma(x))) - 1
    central = (soft(X + 1e-5) - soft(X - 1e-5)) / 2e-5
    np.testing.assert_allclose(dx, G * central, atol=1e-8)
    assert np.isfinite(both(quantized.swish_sign(), [1e4], [1.0])[1])


@pytest.mark.parametrize("o", [1.0, 1.7, 3.0])
def test_reste(o):
    value, dx, _ = both(quantized.reste(o, scale=scales.mean_abs))
    near(value, SIZE.mean() * SIGN)
    safe = np.maximum(SIZE, 1e-9)
    slope = np.where(SIZE > 0.1, safe ** ((1 - o) / o) / o, 0.1 ** (1 / o) / 0.1)
    near(dx, G * SIZE.mean() * np.where(SIZE > 1.5, 0, slope))


def test_reste_follows_its_schedule():
    schedule = quantized.reste_schedule(100)
    expected = [1 + (1 - np.cos(np.pi * t / 200)) * 2 for t in (0, 30, 100)]
    near([schedule(t) for t in (0, 30, 100)], expected, 1e-6)
    assert float(schedule(1000)) == float(schedule(100))
    quantizer = quantized.reste(schedule)
    now = both(quantizer, where=at(30))[1]
    np.testing.assert_allclose(now, both(quantized.reste(expected[1]))[1], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1e-10, 0.7])
def test_bayesbinn(temperature):
    quantizer = quantized.bayesbinn(temperature)
    key = jax.random.key(3)
    value, dx, _ = both(quantizer, where=at(0, key))
    e = np.asarray(jax.nn.sigmoid(jax.random.logistic(key, X.shape, jnp.float64)))
    d = np.log(e / (1 - e)) / 2
    w = np.tanh((X + d) / temperature)
    near(value, w, 1e-6)
    c = (1 - w**2 + 1e-10) / (temperature * (1 - np.tanh(X) ** 2 + 1e-10))
    np.testing.assert_allclose(dx, G * c, rtol=1e-6)
    if temperature < 1e-9:
        assert set(np.unique(value)) == {-1.0, 1.0}
    start = quantizer.start(jnp.asarray(X), None)
    near(start, 10 * SIGN)
    # P(w > 0) = sigma(2 x): x is half the log-odds.
    keys = jax.random.split(key, 4000)
    x = jnp.array([-1.0, 0.3, 2.0])
    draw = jax.jit(jax.vmap(lambda key: quantizer.quantize(x, (), at(0, key)) > 0))
    share, expected = np.mean(draw(keys), 0), 1 / (1 + np.exp(-2 * np.asarray(x)))
    assert np.all(abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000))


def test_bayesbinn_slope_in_float32():
    """At x = 10 a subtraction from 1 would make it 1e10."""
    for dtype in (jnp.float32, jnp.float64):
        x = jnp.array([10.0], dtype)
        _, dx, _ = both(
            quantized.bayesbinn(), x, jnp.ones_like(x), where=at(0, jax.random.key(0))
        )
        np.testing.assert_allclose(dx, 1 / (1 / np.cosh(10.0) ** 2 + 1e-10), rtol=1e-5)
        np.testing.assert_allclose(dx, 1.2e8, rtol=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_bayesbinn_updates(momentum):
    """x <- (1 - eta) x - eta N g without momentum; with it a mean, as published."""
    eta, n = 0.1, 50
    optimizer = quantized.bayesbinn_updates(eta, n, momentum=momentum)
    x = jnp.asarray(X[:, 0])
    state, m, expected = optimizer.init(x), 0.0, X[:, 0]
    for step in range(1, 4):
        g = RNG.normal(size=len(X))
        updates, state = optimizer.update(jnp.asarray(g), state, x)
        x = optax.apply_updates(x, updates)
        m = momentum * m + (1 - momentum) * (n * g + expected)
        expected = expected - eta * m / (1 - momentum**step)
        near(x, expected, 1e-10)


def test_bop():
    quantizer = quantized.bop()
    w = quantizer.start(jnp.asarray(X), None)
    near(w, SIGN)
    value, dx, _ = both(quantizer, w)
    near(value, SIGN)
    near(dx, G)
    flips = quantized.bop_flips(0.1, 0.02)
    state, m, expected = flips.init(w), 0.0, SIGN
    for _ in range(5):
        g = RNG.normal(size=X.shape)
        updates, state = flips.update(jnp.asarray(g), state, w)
        w = optax.apply_updates(w, updates)
        m = 0.9 * m + 0.1 * g
        # Flip where the mean is at least the threshold and has the sign of the weight.
        flipped = (abs(m) > 0.02) & (np.sign(m) == np.sign(expected))
        expected = np.where(flipped, -expected, expected)
        near(w, expected)
    with pytest.raises(ValueError, match="needs the weights"):
        flips.update(w, state)


@pytest.mark.parametrize("per_channel", [True, False])
def test_xnor(per_channel):
    axes, n = (0, len(X)) if per_channel else (None, X.size)
    value, dx, _ = both(quantized.xnor(per_channel=per_channel))
    a = SIZE.mean(axes, keepdims=True)
    near(value, a * SIGN)
    shared = (G * SIGN).sum(axes, keepdims=True)
    near(dx, SIGN / n * shared + a * G * (SIZE <= 1))
    # a sgn(x) is the nearest of its kind: grid search over a.
    grid = np.linspace(0.01, 2, 2000)[:, None, None]
    errors = ((grid * SIGN - X) ** 2).sum(1, keepdims=True)
    if not per_channel:
        errors = errors.sum(2, keepdims=True)
    best = grid[np.argmin(errors, 0), 0, 0]
    np.testing.assert_allclose(a.ravel(), best.ravel(), atol=1e-3)


@pytest.mark.parametrize("per_channel", [True, False])
def test_twn(per_channel):
    axes = 0 if per_channel else None
    value, dx, _ = both(quantized.twn(per_channel=per_channel))
    delta = 0.7 * SIZE.mean(axes, keepdims=True)
    is_out = delta < SIZE
    a = (SIZE * is_out).sum(axes, keepdims=True) / is_out.sum(axes, keepdims=True)
    near(value, a * np.sign(X) * is_out)
    near(dx, G * (SIZE <= 1))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_dorefa(bits):
    steps = 2**bits - 1

    def formula(x):
        z = jnp.tanh(x) / (2 * jnp.max(jnp.abs(jnp.tanh(x)))) + 0.5
        q = z + jax.lax.stop_gradient(jnp.round(steps * z) / steps - z)
        return 2 * q - 1

    x = X[:-1]  # without equal largest magnitudes, which would share the maximum's
    expected, pull = jax.vjp(formula, jnp.asarray(x))
    value, dx, _ = both(quantized.dorefa(bits), x, G[:-1])
    np.testing.assert_allclose(value, expected, atol=1e-6)  # levels are of float32
    near(dx, pull(jnp.asarray(G[:-1]))[0], 1e-10)
    assert len(np.unique(value)) <= 2**bits


@pytest.mark.parametrize("bits", [1, 4])
def test_dorefa_activation(bits):
    steps = 2**bits - 1
    value, dx, _ = both(quantized.dorefa_activation(bits))
    near(value, np.round(steps * np.clip(X, 0, 1)) / steps)
    near(dx, G * ((X >= 0) & (X <= 1)))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_pact(bits):
    quantizer = quantized.pact(bits, clip=0.8)
    learned = quantizer.learn(jnp.asarray(X))
    assert float(learned.clip) == 0.8
    value, dx, da = both(quantizer, learned=learned)
    s = 0.8 / (2**bits - 1)
    near(value, s * np.round(np.clip(X, 0, 0.8) * (1 / s)))
    near(dx, G * ((X >= 0) & (X < 0.8)))
    # No (round(u) - u) / (2^k - 1) inside, as autodiff of the quotient would have.
    near(da.clip, (G * (X >= 0.8)).sum())
    below = both(quantizer, learned=quantized.Clip(jnp.array(-1.0)))[0]
    assert np.all(np.isnan(below))


LSQ_FORMATS = {
    "signed": (number_formats.affine(3), -4, 3),
    "unsigned": (number_formats.affine(3, signed=False), 0, 7),
    "binary": (BINARY, -1, 1),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", LSQ_FORMATS)
@pytest.mark.thinned(3)
def test_lsq(name, per_channel):
    fmt, least, most = LSQ_FORMATS[name]
    axes = 0 if per_channel else None
    published = scales.published_for_lsq
    quantizer = quantized.lsq(fmt, per_channel=per_channel, scale=published)
    start = quantizer.learn(jnp.asarray(X)).scale
    near(start, 2 * SIZE.mean(axes, keepdims=per_channel) / np.sqrt(most))
    s = np.asarray(start) * 0.9
    value, dx, learned = both(quantizer, learned=quantized.LearnedScale(jnp.asarray(s)))
    u = X * (1 / s)
    level = np.asarray(fmt.round(jnp.clip(jnp.asarray(u), least, most)))
    near(value, s * level)
    inside = (least <= u) & (u <= most)
    near(dx, G * inside)
    factor = 1 / np.sqrt(X.size / s.size * most)
    ds = factor * (G * np.where(inside, level - u, level)).sum(
        axes, keepdims=per_channel
    )
    near(learned.scale, ds, 1e-10)
    plain = quantized.lsq(fmt, per_channel=per_channel, scale_gradient=False)
    more = both(plain, learned=quantized.LearnedScale(jnp.asarray(s)))[2]
    near(more.scale, ds / factor, 1e-10)
    # By autodiff of s (u + stop(round(u) - u)).
    if name != "binary":
        stop = jax.lax.stop_gradient

        def formula(s):
            u = jnp.clip(jnp.asarray(X) / s, least, most)
            return jnp.sum(G * (s * (u + stop(jnp.round(u) - u))))

        near(jax.grad(formula)(jnp.asarray(s)), ds / factor, 1e-9)
    bad = both(quantizer, learned=quantized.LearnedScale(jnp.asarray(-s)))[0]
    assert np.all(np.isnan(bad))


def test_lsq_plus():
    fmt = number_formats.affine(3, signed=False)
    quantizer = quantized.lsq_plus(fmt, start="published")
    start = quantizer.learn(jnp.asarray(X))
    near(start.scale, (X.max() - X.min()) / 7)
    near(start.offset, X.min())
    both_signs = quantized.lsq_plus(number_formats.affine(4), start="published")
    signed = both_signs.learn(jnp.asarray(X))
    near(
        signed.scale, max(abs(X.mean() - 3 * X.std()), abs(X.mean() + 3 * X.std())) / 8
    )
    s, o = 0.2, -0.45
    learned = quantized.ScaleAndOffset(jnp.array(s), jnp.array(o))
    value, dx, slopes = both(quantizer, learned=learned)
    u = (X - o) * (1 / s)
    level, inside = np.round(np.clip(u, 0, 7)), (u >= 0) & (u <= 7)
    near(value, s * level + o)
    near(dx, G * inside)
    near(slopes.scale, (G * np.where(inside, level - u, level)).sum(), 1e-10)
    near(slopes.offset, (G * ~inside).sum(), 1e-10)


def test_learned_scale_is_lsq_in_the_logarithm():
    fmt = number_formats.affine(3)
    quantizer = quantized.learned_scale(fmt, 0.3)
    learned = quantizer.learn(jnp.asarray(X))
    near(learned.log_scale, np.log(0.3))
    value, dx, slopes = both(quantizer, learned=learned)
    other = quantized.lsq(fmt, scale_gradient=False)
    expected, de, own = both(other, learned=quantized.LearnedScale(jnp.array(0.3)))
    near(value, expected)
    near(dx, de)
    near(slopes.log_scale, 0.3 * own.scale, 1e-10)


def test_learned_levels():
    quantizer = quantized.learned_levels(TERNARY, scale=0.5)
    learned = quantizer.learn(jnp.asarray(X))
    near(learned.levels, [-0.5, 0, 0.5])
    levels = jnp.array([0.9, -1.1, 0.05])  # in no order
    value, dx, slopes = both(quantizer, learned=quantized.Codebook(levels))
    place = np.argmin(abs(X[..., None] - np.asarray(levels)), -1)
    near(value, np.asarray(levels)[place])
    near(dx, G)
    near(slopes.levels, [(G * (place == k)).sum() for k in range(3)], 1e-10)
    with pytest.raises(ValueError, match="at most 8 bits"):
        quantized.learned_levels(number_formats.symmetric(12))
    with pytest.raises(ValueError, match="expected one scale"):
        quantized.learned_levels(
            TERNARY, scale=scales.of_channels(scales.max_abs)
        ).learn(jnp.asarray(X))


def test_hessians_through_surrogates_are_symmetric():
    """M H M: slopes are constants for the next derivative, as CG needs it."""
    for quantizer in (
        quantized.approx_sign(),
        quantized.clipped_ste(INT4, scale=0.2),
        quantized.reste(2.0),
    ):
        x = jnp.asarray(X[:5, 0])
        loss = lambda x, q=quantizer: jnp.sum(jnp.sin(q.quantize(x, (), at()))) ** 2
        hessian = jax.jit(jax.jacfwd(jax.grad(loss)))(x)
        near(hessian, hessian.T)
        assert np.max(abs(hessian)) > 0


BAD = [
    (lambda: quantized.swish_sign(-1.0), "sharpness must be positive"),
    (lambda: quantized.reste(0.5), "power must be at least 1"),
    (lambda: quantized.bayesbinn(0.0), "temperature must be positive"),
    (lambda: quantized.bop_flips(0.0), "adaptivity must lie in"),
    (lambda: quantized.bop_flips(0.1, -1.0), "threshold must not be negative"),
    (lambda: quantized.twn(threshold=-1.0), "threshold must not be negative"),
    (lambda: quantized.dorefa(1), r"bits must lie in \[2, 8\]"),
    (lambda: quantized.dorefa_activation(9), r"bits must lie in \[1, 8\]"),
    (lambda: quantized.pact(0), r"bits must lie in \[1, 8\]"),
    (lambda: quantized.pact(2, clip=0.0), "clip must be positive"),
    (
        lambda: quantized.lsq(number_formats.symmetric(4, np.ones((1, 2)))),
        "has scales of its own",
    ),
    (
        lambda: quantized.activation(quantized.pact(2), jnp.ones(3)),
        "make it by quantizer.learn",
    ),
    (
        lambda: quantized.activation(quantized.ste(INT4), jnp.arange(3)),
        "must be floats",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
