"""Quantisers in Flax models, with optax, and scales as outer variables."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from quantized.quantizers import BINARY, at

import bilevel
from bilevel import (
    hypergradients,
    inner_solvers,
    linear_solvers,
    number_formats,
    quantized,
)
from bilevel.quantized import scales

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (6, 4))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])


class Linen(linen.Module):
    """Two layers, binary activations between, a learned clip at the input."""

    @linen.compact
    def __call__(self, x):
        clip = quantized.pact(4, clip=0.5)
        learned = self.param("clip", lambda key: clip.learn(x))
        x = linen.Dense(5)(quantized.activation(clip, x, learned))
        sign = quantized.clipped_ste(BINARY)
        return linen.Dense(3)(quantized.activation(sign, x))


class Nnx(nnx.Module):
    """As above, without the clip."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.second = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        sign = quantized.clipped_ste(BINARY)
        return self.second(quantized.activation(sign, self.first(x)))


def cost(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


@pytest.mark.thorough
def test_linen():
    model, q = Linen(), quantized.lsq(number_formats.affine(3))
    params = model.init(KEY, IMAGES)
    latent, state = quantized.init(q, params)
    assert sorted(state.learned) == ["params/Dense_0/kernel", "params/Dense_1/kernel"]

    @jax.jit
    def slopes(latent, learned):
        own = state._replace(learned=learned)
        return jax.grad(
            lambda z, l: cost(
                model.apply(quantized.apply(q, own._replace(learned=l), z), IMAGES)
            ),
            (0, 1),
        )(latent, learned)

    for tree in slopes(latent, state.learned):
        assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(tree))


def test_nnx():
    model, q = Nnx(nnx.Rngs(0)), quantized.xnor()
    graph, params = nnx.split(model, nnx.Param)
    latent, state = quantized.init(q, params)
    assert sorted(state.learned) == ["first/kernel", "second/kernel"]

    @jax.jit
    def loss(latent):
        return cost(nnx.merge(graph, quantized.apply(q, state, latent))(IMAGES))

    gradient = jax.grad(loss)(latent)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    final = nnx.merge(graph, quantized.final(q, state, latent))
    kernel = final.first.kernel[...]
    assert all(len(np.unique(abs(column))) == 1 for column in np.asarray(kernel).T)
    exported = quantized.export(q, state, latent)
    again = nnx.merge(graph, exported.params(latent))
    np.testing.assert_array_equal(
        jax.jit(lambda m: m(IMAGES))(again), jax.jit(lambda m: m(IMAGES))(final)
    )


def test_flips_beside_another_optimizer():
    q = quantized.bop()
    params = {"kernel": jax.random.normal(KEY, (4, 3)), "bias": jnp.zeros(3)}
    latent, state = quantized.init(q, params)
    labels = quantized.labels(state, latent)
    assert labels == {"kernel": "latent", "bias": "other"}
    optimizer = optax.partition(
        {"latent": quantized.bop_flips(0.1, 1e-3), "other": optax.adam(0.1)}, labels
    )
    memory = optimizer.init(latent)

    @jax.jit
    def step(latent, memory):
        def loss(latent):
            w = quantized.apply(q, state, latent)
            return cost(IMAGES @ w["kernel"] + w["bias"][None])

        value, gradient = jax.value_and_grad(loss)(latent)
        updates, memory = optimizer.update(gradient, memory, latent)
        return optax.apply_updates(latent, updates), memory, value

    values = []
    for _ in range(30):
        latent, memory, value = step(latent, memory)
        values.append(float(value))
    assert set(np.unique(latent["kernel"])) <= {-1.0, 1.0}
    assert values[-1] < values[0]


def test_size_in_bytes():
    q = quantized.ste(
        number_formats.symmetric(4), scale=scales.of_channels(scales.max_abs)
    )
    params = {
        "kernel": jnp.ones((7, 3), jnp.float32),
        "bias": jnp.zeros(3, jnp.float32),
    }
    latent, state = quantized.init(q, params)
    made = quantized.export(q, state, latent)
    # 21 codes of 4 bits, 3 scales, 3 biases.
    assert made.quantized["kernel"].num_bits == 21 * 4 + 3 * 32
    assert made.num_bytes == -(-21 * 4 // 8) + 3 * 4 + 3 * 4
    assert "35 bytes; 96 with float32 weights" in str(made)
    # Two quantisers of one tree, and signs without a scale.
    more = {**params, "last": jnp.ones((8, 3), jnp.float32)}
    sign = quantized.clipped_ste(BINARY)
    (_, first), (_, second) = (
        quantized.init(q, more),
        quantized.init(sign, more, "last"),
    )
    whole = quantized.export(q, first, more, (sign, second))
    assert whole.num_bytes == made.num_bytes + 3
    assert sorted(whole.quantized) == ["kernel", "last"]


@pytest.mark.thorough
def test_hypergradient_of_a_smooth_quantiser():
    """Against central differences of the inner problem, solved again."""
    x = jax.random.normal(KEY, (30, 4))
    y = x @ jnp.array([1.0, -1.0, 0.5, 0.2])
    train, validation = (x[:20], y[:20]), (x[20:], y[20:])

    def weights(latent, outer):
        q = quantized.tanh_projection(BINARY, 1.5)
        own = q.quantize(latent, (), at())
        return jnp.exp(outer) * own

    def error(latent, outer, data):
        return jnp.mean((data[0] @ weights(latent, outer) - data[1]) ** 2)

    def inner(latent, outer, data):
        return error(latent, outer, data) + 0.05 * jnp.sum(latent**2)

    problem = bilevel.Problem(inner_objective=inner, outer_objective=error)
    solver = inner_solvers.lbfgs(max_steps=500, rtol=1e-12)
    evaluate = jax.jit(
        bilevel.value_and_hypergradient(problem, solver, hypergradients.implicit())
    )
    batches = bilevel.Batches(train, validation)
    value = lambda s: evaluate(jnp.full(4, 0.1), s, batches)
    own = value(jnp.array(0.2))
    central = (
        value(jnp.array(0.2 + 1e-4)).value - value(jnp.array(0.2 - 1e-4)).value
    ) / 2e-4
    assert own.info.trustworthy
    np.testing.assert_allclose(own.gradient, central, rtol=1e-3)


def test_learned_scale_finds_the_best_one():
    """That of the least error of Gaussian weights, within 0.3 dB."""
    x = jax.random.normal(KEY, (5000,))
    fmt = number_formats.symmetric(4)
    q = quantized.learned_scale(fmt, scales.max_abs)

    def rounding(learned):
        return jnp.mean((q.quantize(x, learned, at()) - x) ** 2)

    adam, learned = optax.adam(0.05), q.learn(x)

    def step(carry):
        learned, memory = carry
        updates, memory = adam.update(jax.grad(rounding)(learned), memory)
        return optax.apply_updates(learned, updates), memory

    learned, _ = bilevel.iterate(step, (learned, adam.init(learned)), num_steps=100)
    decibel = lambda learned: -10 * np.log10(float(rounding(learned)))
    log_best = jnp.log(number_formats.best_scale(fmt, x))
    best = decibel(quantized.LogScale(log_best))
    found = decibel(learned)
    assert decibel(q.learn(x)) < best - 0.5
    assert found > best - 0.3


@pytest.mark.parametrize("solve", ["dense", "cg"])
@pytest.mark.thorough
def test_hypergradient_through_a_surrogate(solve):
    """A quadratic in the rounded weights, whose M H M is known: M is a mask."""
    matrix = jax.random.normal(KEY, (12, 5))
    a, y = matrix[:6], jnp.arange(6.0)
    b, z = matrix[6:], jnp.ones(6)
    fmt, latent0 = number_formats.symmetric(8), jnp.zeros(5)
    ridge, s0 = 0.3, jnp.log(0.02)
    q = quantized.learned_scale(fmt)

    def weights(latent, s):
        return q.quantize(latent, quantized.LogScale(s), at())

    def inner(latent, s, _):
        fit = jnp.sum((a @ weights(latent, s) - y) ** 2) / 2
        return fit + ridge / 2 * jnp.sum(latent**2)

    def outer(latent, s, _):
        return jnp.sum((b @ weights(latent, s) - z) ** 2) / 2

    steps = 4000
    solver = inner_solvers.gradient_descent(optax.sgd(0.02), max_steps=steps, rtol=None)
    chosen = hypergradients.implicit(getattr(linear_solvers, solve)())
    problem = bilevel.Problem(inner_objective=inner, outer_objective=outer)
    evaluate = jax.jit(
        bilevel.value_and_hypergradient(problem, solver, chosen, certify=False)
    )
    out = evaluate(latent0, s0)
    # By hand at the solution: dF/ds - J' (M A' A M + ridge)^-1 M dF/dw.
    w, u = np.asarray(weights(out.inner, s0)), np.asarray(out.inner) / 0.02
    inside = (abs(u) <= 127).astype(float)
    in_scale = 0.02 * np.where(inside, np.round(u) - u, np.sign(u) * 127)  # dw / ds
    mask = np.diag(inside)
    hessian = mask @ a.T @ a @ mask + ridge * np.eye(5)
    mixed = mask @ a.T @ a @ in_scale
    slope = np.asarray(b.T @ (b @ w - z))
    expected = in_scale @ slope - mixed @ np.linalg.solve(hessian, mask @ slope)
    np.testing.assert_allclose(out.gradient, expected, rtol=1e-6)
