"""Batches as functions of a key and a number: what is drawn, how often, and when."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import samplers
from bilevel.problem import Solver, as_samples, stream

KEY = jax.random.key(5)


def indices(size: int, batch_size: int, draws: range, key: Any = KEY) -> np.ndarray:
    """`[draws, B]`, the examples of consecutive draws of `epochs`."""
    sample = samplers.epochs(jnp.arange(size), batch_size, indexed=True)
    batches = jax.jit(jax.vmap(lambda i: sample(key, i)))(jnp.array(draws))
    np.testing.assert_array_equal(batches.data, batches.indices)
    assert batches.indices.dtype == jnp.int32
    return np.asarray(batches.indices)


@pytest.mark.parametrize(
    ("size", "batch_size"),
    [(1, 1), (7, 7), (10, 3), (256, 60), (257, 100), (1000, 128), (4099, 17)],
)
def test_every_example_once_in_each_pass(size: int, batch_size: int):
    passes = 3
    count = -(-passes * size // batch_size)
    row = indices(size, batch_size, range(count)).ravel()[: passes * size]
    orders = row.reshape(passes, size)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
    if size > 10:
        assert not np.array_equal(orders[0], orders[1])
        assert not np.array_equal(orders[0], np.arange(size))


def test_a_late_draw_without_overflow():
    """Draw 2^32 - 2 of batches of 1000 of 4 million: in pass 1,073,741."""
    size, batch_size, draw = 4_000_000, 1000, 2**32 - 2
    sample = samplers.epochs(jnp.zeros((size,), jnp.int8), batch_size, indexed=True)
    found = np.asarray(sample(KEY, jnp.uint32(draw)).indices)
    assert len(np.unique(found)) == batch_size
    assert found.min() >= 0
    assert found.max() < size
    first = draw * batch_size % size
    before = np.asarray(sample(KEY, jnp.uint32(draw - 1)).indices)
    assert first >= batch_size, "both in one pass, or the next line says nothing"
    assert not set(found) & set(before)


def test_orders_are_random():
    """Where an example comes, and who comes with it, over 2000 keys of 300 examples.

    Chi-squared with 29 degrees of freedom has mean 29 and deviation 7.6; 65 is beyond
    one in 10 000.
    """
    size, keys = 300, jax.random.split(jax.random.key(1), 2000)
    sample = samplers.epochs(jnp.arange(size), size, indexed=True)
    orders = np.asarray(jax.jit(jax.vmap(lambda k: sample(k, 0).indices))(keys))
    for place in (0, 150, 299):
        counts = np.bincount(orders[:, place] // 10, minlength=30)
        expected = len(keys) / 30
        assert np.sum((counts - expected) ** 2 / expected) < 65
    gaps = (orders[:, 1] - orders[:, 0]) % size
    counts = np.bincount((gaps - 1) * 30 // (size - 1), minlength=30)
    expected = len(keys) / 30
    assert np.sum((counts - expected) ** 2 / expected) < 65
    # Mean and deviation of the batch of the first 30: without replacement the variance
    # is that of independent draws times (N - n) / (N - 1).
    means = orders[:, :30].mean(axis=1)
    variance = (size**2 - 1) / 12 / 30 * (size - 30) / (size - 1)
    assert abs(means.mean() - (size - 1) / 2) < 4 * np.sqrt(variance / len(keys))
    assert abs(means.var() / variance - 1) < 4 * np.sqrt(2 / len(keys))


def test_uniform_draws_with_replacement():
    sample = samplers.uniform(jnp.arange(10), 1000, indexed=True)
    batches = jax.vmap(lambda i: sample(KEY, i))(jnp.arange(10))
    counts = np.bincount(np.asarray(batches.indices).ravel(), minlength=10)
    # Chi-squared with 9 degrees of freedom; 34 is beyond one in 10 000.
    assert np.sum((counts - 1000) ** 2 / 1000) < 34
    assert not np.array_equal(batches.indices[0], batches.indices[1])


def test_trees_dtypes_and_numpy_arrays():
    data = {"x": np.ones((6, 2), np.float32), "y": jnp.arange(6, dtype=jnp.uint8)}
    for sampler in (samplers.uniform(data, 4), samplers.epochs(data, 4)):
        batch = jax.jit(sampler)(KEY, 0)
        assert batch["x"].shape == (4, 2)
        assert batch["x"].dtype == np.float32
        assert batch["y"].dtype == np.uint8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.uniform({}, 1), "arrays of one length"),
        (lambda: samplers.uniform(jnp.ones(()), 1), "arrays of one length"),
        (lambda: samplers.epochs(jnp.ones((0, 2)), 1), "arrays of one length"),
        (
            lambda: samplers.epochs((jnp.ones(3), jnp.ones(4)), 1),
            "arrays of one length",
        ),
        (lambda: samplers.epochs(jnp.ones(3), 4), "at most the number of examples"),
        (lambda: samplers.epochs(jnp.ones(3), 0), "batch_size must be an integer"),
        (lambda: samplers.uniform(jnp.ones(3), 1.5), "batch_size must be an integer"),
    ],
)
def test_data_and_sizes_are_checked(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


# An algorithm that draws as an outsider's would: several batches a step, and noise.


class State(NamedTuple):
    inner: Any
    outer: Any
    step: Any
    key: Any


class Drawn(NamedTuple):
    own: Any
    inner: Any
    outer: Any


def three_draws() -> Solver[State, Drawn]:
    """Reports what it drew: its own noise, two inner batches, one outer batch."""

    def init(inner: Any, outer: Any, key: Any) -> State:
        return State(inner, outer, jnp.zeros((), jnp.int32), key)

    def update(state: State, samples: Any) -> tuple[State, Drawn]:
        samples = as_samples(samples)
        noise = jax.random.fold_in(stream(state.key, "noise"), state.step)
        own = stream(state.key, "inner")
        inner = [samples.inner(own, 2 * state.step + i) for i in range(2)]
        outer = samples.outer(stream(state.key, "outer"), state.step)
        new = state._replace(step=state.step + 1)
        return new, Drawn(jax.random.normal(noise), jnp.stack(inner), outer)

    return Solver(init, update)


def test_streams_of_an_algorithm_are_independent():
    """The algorithm's noise is not the sampler's, as it was with one key for both."""
    normal = lambda key, draw: jax.random.normal(jax.random.fold_in(key, draw))
    solver = three_draws()
    state = solver.init(0.0, 0.0, jax.random.key(0))
    samples = bilevel.Samples(normal, normal)
    _, drawn = bilevel.run(solver, state, samples, num_steps=500)
    rows = np.stack([drawn.own, *drawn.inner.T, drawn.outer])
    off_diagonal = np.corrcoef(rows)[np.triu_indices(4, 1)]
    assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(500)


def test_a_run_goes_on_from_its_step_alone():
    solver = three_draws()
    data = jnp.arange(10.0)
    samples = bilevel.Samples(samplers.epochs(data, 4), samplers.uniform(data, 3))
    first = solver.init(0.0, 0.0, jax.random.key(0))
    _, whole = bilevel.run(solver, first, samples, num_steps=7)
    middle, begun = bilevel.run(solver, first, samples, num_steps=3)
    _, rest = bilevel.run(solver, middle, samples, num_steps=4)
    for a, b, c in zip(whole, begun, rest, strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c]))
    # Two inner draws of 4 a step are passes of 10 without replacement.
    passes = whole.inner.reshape(-1)[:50].reshape(5, 10)
    for order in passes:
        np.testing.assert_array_equal(np.sort(order), data)


def test_a_mini_batch_problem_is_solved():
    """The mean of the outer targets is tuned for; batches are noise around it."""
    noise = np.random.default_rng(0).normal(size=(40, 2))
    inner_data, outer_data = jnp.asarray(noise[:20]), jnp.asarray(noise[20:] + 1)
    problem = bilevel.Problem(
        lambda w, x, b: jnp.sum((w - x - jnp.mean(b, axis=0)) ** 2),
        lambda w, x, b: jnp.sum((w - jnp.mean(b, axis=0)) ** 2),
    )
    solver = bilevel.solvers.two_loop(problem, outer_optimizer=optax.sgd(0.02))
    samples = bilevel.Samples(
        samplers.epochs(inner_data, 5), samplers.epochs(outer_data, 5)
    )
    state = solver.init(jnp.zeros(2), jnp.zeros(2), jax.random.key(0))
    state, _ = bilevel.run(solver, state, samples, num_steps=400)
    best = jnp.mean(outer_data, axis=0) - jnp.mean(inner_data, axis=0)
    np.testing.assert_allclose(state.outer, best, atol=0.1)
