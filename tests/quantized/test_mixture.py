"""The relaxed choice among quantisers, and the decision within a budget."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quantized.quantizers import at

import bilevel
from bilevel import hypergradients, inner_solvers, number_formats, quantized

KEY = jax.random.key(0)
EACH = [
    quantized.learned_scale(number_formats.symmetric(bits), quantized.scales.max_abs)
    for bits in (2, 3, 4, 8)
]


def test_weights_and_gradients():
    q = quantized.mixture(EACH, 0.5)
    x = jax.random.normal(KEY, (20,))
    c = jax.random.normal(jax.random.key(1), (20,))
    learned = q.learn(x)._replace(logits=jnp.array([0.1, -0.3, 0.2, 0.0]))
    shares = np.asarray(jax.nn.softmax(learned.logits / 0.5))
    each = [
        one.quantize(x, p, at()) for one, p in zip(EACH, learned.parts, strict=True)
    ]
    loss = lambda z, l: jnp.sum(c * q.quantize(z, l, at()))
    value, (dx, slopes) = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, learned)
    terms = np.array([float(jnp.sum(c * one)) for one in each])
    np.testing.assert_allclose(value, shares @ terms, rtol=1e-12)
    expected = shares * (terms - shares @ terms) / 0.5
    np.testing.assert_allclose(slopes.logits, expected, rtol=1e-10)
    own = [
        jax.grad(lambda z, one=one, p=p: jnp.sum(c * one.quantize(z, p, at())))(x)
        for one, p in zip(EACH, learned.parts, strict=True)
    ]
    mean = sum(share * g for share, g in zip(shares, own, strict=True))
    np.testing.assert_allclose(dx, mean, rtol=1e-10)
    for part, one, share in zip(slopes.parts, EACH, shares, strict=True):
        alone = jax.grad(lambda p, one=one: jnp.sum(c * one.quantize(x, p, at())))
        np.testing.assert_allclose(
            part.log_scale, share * alone(one.learn(x)).log_scale, rtol=1e-9
        )
    with pytest.raises(ValueError, match="a mixture has no codes"):
        q.encode(x, learned)


@pytest.mark.thorough
def test_expected_bytes_and_decisions():
    q = quantized.mixture(EACH)
    rng = np.random.default_rng(0)
    sizes = {"a": 40, "b": 100, "c": 8, "d": 300}
    params = {name: jax.random.normal(KEY, (size,)) for name, size in sizes.items()}
    latent, state = quantized.init(q, params, ".")
    logits = {name: jnp.asarray(rng.normal(size=4)) for name in sizes}
    for name in sizes:
        state.learned[name] = state.learned[name]._replace(logits=logits[name])
    bits = np.array([2, 3, 4, 8])
    shares = {name: np.asarray(jax.nn.softmax(one)) for name, one in logits.items()}
    size = lambda name: np.ceil(sizes[name] * bits / 8) + 8  # a scale of float64
    total = sum(shares[name] @ size(name) for name in sizes)
    got = quantized.expected_bytes(EACH, state, latent)
    np.testing.assert_allclose(got, total, rtol=1e-12)

    # Against all 256 choices.
    names = sorted(sizes)
    choices = list(itertools.product(range(4), repeat=4))
    pairs = [list(zip(names, one, strict=True)) for one in choices]
    weigh = lambda one: sum(size(n)[k] for n, k in one)
    score = lambda one: sum(np.log(shares[n][k]) for n, k in one)
    for budget in (147, 180, 230, 330, None):
        fits = [one for one in pairs if budget is None or weigh(one) <= budget]
        best = max(fits, key=score)
        found = quantized.decide(EACH, state, latent, budget)
        assert found.choice == dict(best)
        assert found.num_bytes == weigh(best)
    with pytest.raises(ValueError, match="smallest choice has 144 bytes with its"):
        quantized.decide(EACH, state, latent, 143)

    # What is decided can be applied and exported.
    found = quantized.decide(EACH, state, latent, 230)
    weights = latent
    for quantizer, own in found.parts:
        weights = quantized.apply(quantizer, own, weights)
        exported = quantized.export(quantizer, own, latent)
        for path, made in exported.quantized.items():
            assert made.number_format.bits == bits[found.choice[path]]
            np.testing.assert_allclose(made.decode(), weights[path], rtol=1e-12)


@pytest.mark.thorough
def test_bits_go_where_they_are_needed():
    """Bit widths as outer variables: the layer that the loss feels gets more."""
    keys = jax.random.split(KEY, 4)
    target = {
        "felt": jax.random.normal(keys[0], (50,)),
        "idle": jax.random.normal(keys[1], (50,)),
    }
    noisy = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(keys[2], x.shape), target
    )
    ends = [EACH[0], EACH[-1]]
    q = quantized.mixture(ends)
    latent, state = quantized.init(q, target, ".")

    def inner(latent, learned, _):
        w = quantized.apply(q, state._replace(learned=learned), latent)
        square = lambda a, b: sum(jnp.sum((a[name] - b[name]) ** 2) for name in a)
        return square(w, noisy) + square(latent, target)

    def outer(latent, learned, _):
        own = state._replace(learned=learned)
        w = quantized.apply(q, own, latent)
        miss = jnp.mean((w["felt"] - target["felt"]) ** 2)
        miss += 1e-3 * jnp.mean((w["idle"] - target["idle"]) ** 2)
        size = quantized.expected_bytes(ends, own, latent)
        return miss + 1e-3 * size

    descent = inner_solvers.gradient_descent(optax.sgd(0.1), max_steps=20, rtol=None)
    solver = bilevel.solvers.two_loop(
        bilevel.Problem(inner, outer),
        descent,
        hypergradients.implicit(),
        outer_optimizer=optax.adam(0.1),
    )
    run = solver.init(latent, state.learned, KEY)
    run, _ = bilevel.run(solver, run, bilevel.Batches(), num_steps=40)
    own = state._replace(learned=run.outer)
    assert quantized.decide(ends, own, run.inner).choice == {"felt": 1, "idle": 0}


def test_posit_es_is_learned():
    """Wide weights want more exponent bits."""
    posits = [quantized.ste(number_formats.posit(8, es)) for es in (0, 1, 2)]
    q = quantized.mixture(posits)
    wide = jnp.exp(2.5 * jax.random.normal(KEY, (2000,)))
    normal = jax.random.normal(KEY, (2000,))

    def found(x, unit):
        error = lambda l: jnp.mean(((q.quantize(x, l, at()) - x) / unit) ** 2)
        learned, adam = q.learn(x), optax.adam(0.1)

        def step(carry):
            learned, memory = carry
            updates, memory = adam.update(jax.grad(error)(learned), memory)
            return optax.apply_updates(learned, updates), memory

        learned, _ = bilevel.iterate(step, (learned, adam.init(learned)), num_steps=80)
        state = quantized.State(jnp.zeros((), jnp.int32), None, {"x": learned})
        return quantized.decide(posits, state, {"x": x}).choice["x"]

    assert found(wide, wide) == 2  # relative errors
    assert found(normal, 1.0) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantized.mixture(EACH[:1]), "two candidates or more"),
        (lambda: quantized.mixture(EACH, 0.0), "temperature must be positive"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
