"""The host's loop over chunks of compiled steps."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_problems import ridge, ridge_data

import bilevel
from bilevel import inner_solvers, samplers, solvers
from bilevel.experiments.checkpoint import open_checkpoints
from bilevel.problem import stream
from bilevel.run import last_metrics

START, OUTER = jnp.zeros(3), jnp.array([-0.8, 0.2, -0.3])
DATA = ridge_data(0, num_rows=16)


def validation(w: Any, x: Any, batch: Any) -> jax.Array:
    del x
    return jnp.mean((batch.features @ w - batch.targets) ** 2)


SOLVER = solvers.two_loop(
    bilevel.Problem(ridge, validation),
    inner_solvers.gradient_descent(0.2, max_steps=5),
    outer_optimizer=optax.adam(0.05),
)


SAMPLES = bilevel.Samples(
    inner=samplers.epochs(DATA, batch_size=6),
    outer=samplers.uniform(DATA, batch_size=8),
)


def initial() -> Any:
    return SOLVER.init(START, OUTER, jax.random.key(1))


def run(state: Any, num_steps: int, **settings: Any) -> Any:
    return bilevel.run(SOLVER, state, SAMPLES, num_steps=num_steps, **settings)


def assert_same_bits(a: Any, b: Any) -> None:
    leaves = zip(
        jax.tree.leaves_with_path(a._replace(key=0)),
        jax.tree.leaves(b._replace(key=0)),
        strict=True,
    )
    for (path, x), y in leaves:
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
    np.testing.assert_array_equal(*map(jax.random.key_data, (a.key, b.key)))


@pytest.fixture(scope="module")
def uninterrupted() -> Any:
    """Twelve steps in one go, and their history."""
    return run(initial(), 12, chunk_size=4)


@pytest.mark.thorough
def test_is_the_loop_over_update(uninterrupted: Any):
    state, history = uninterrupted
    expected, values = initial(), []
    update = jax.jit(SOLVER.update)
    for step in range(12):
        batches = bilevel.Batches(
            SAMPLES.inner(stream(expected.key, "inner"), step),
            SAMPLES.outer(stream(expected.key, "outer"), step),
        )
        expected, info = update(expected, batches)
        values.append(info.value)
    np.testing.assert_allclose(state.outer, expected.outer, rtol=1e-12)
    np.testing.assert_allclose(history.value, values, rtol=1e-12)
    assert int(state.step) == 12
    shapes = {np.shape(x) for x in jax.tree.leaves(history)}
    assert shapes == {(12,)}
    assert isinstance(history.value, np.ndarray)


@pytest.mark.parametrize(
    "chunk_size",
    # A chunk of one step is what XLA would compile differently.
    [1, *(pytest.param(size, marks=pytest.mark.thorough) for size in (2, 5, 100))],
)
def test_chunk_size_does_not_change_bits(chunk_size: int, uninterrupted: Any):
    state, history = run(initial(), 12, chunk_size=chunk_size)
    assert_same_bits(state, uninterrupted[0])
    np.testing.assert_array_equal(history.value, uninterrupted[1].value)


LOOP_AND_SCAN = """
import sys
import jax, optax
import bilevel
from bilevel import solvers
from bilevel.experiments import config, digests, load_config
from examples import data_cleaning as example
from examples.data_cleaning_models import zeros
from examples.data_cleaning_task import load

cfg = load_config("configs/data_cleaning_mnist.py").config
cfg = config.replace(cfg, {"num_train": 500, "num_validation": 100})
task = load(cfg, sys.argv[1])
solver = solvers.two_loop(
    bilevel.Problem(example.inner_objective, example.outer_objective),
    *example.method("implicit"),
    outer_optimizer=optax.adam(cfg.cleaning.learning_rate),
)
batches = example.stage_batches(cfg, task, 0.1, task.is_validation)
models = zeros(cfg.cleaning.num_folds, len(task.mean))
first = solver.init(models, jax.numpy.zeros(500), jax.random.key(0))
looped, update = first, jax.jit(solver.update)
for _ in range(6):
    looped, _ = update(looped, batches)
scanned, _ = bilevel.run(solver, first, batches, num_steps=6, chunk_size=3)
for state in looped, scanned:
    print(digests.digest_of(digests.leaf_records(state)))
"""


@pytest.mark.thorough
def test_python_loop_and_scan_give_the_same_bits_on_mnist(data_dir: Path):
    # As a user has it: none of the settings of this test process.
    done = subprocess.run(
        [sys.executable, "-c", LOOP_AND_SCAN, str(data_dir)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "NPROC": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    looped, scanned = done.stdout.split() or [done.stderr, ""]
    assert looped == scanned


def test_interrupted_and_continued_equals_uninterrupted(uninterrupted: Any):
    state, first = run(initial(), 5, chunk_size=4)
    state, second = run(state, 7, chunk_size=4)
    assert_same_bits(state, uninterrupted[0])
    values = np.concatenate([first.value, second.value])
    np.testing.assert_array_equal(values, uninterrupted[1].value)


def test_checkpointed_and_continued_equals_uninterrupted(
    tmp_path: Path, uninterrupted: Any
):
    state, _ = run(initial(), 8, chunk_size=4)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, state)
    with open_checkpoints(tmp_path) as checkpoints:
        restored, step = checkpoints.restore(initial())
    assert step == 8
    assert_same_bits(restored, state)
    state, _ = run(restored, 4, chunk_size=4)
    assert_same_bits(state, uninterrupted[0])


def test_ctrl_c_returns_the_state_after_the_chunk(uninterrupted: Any):
    before = signal.getsignal(signal.SIGINT)

    def interrupt(state: Any, infos: Any) -> None:
        if int(state.step) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    state, history = run(initial(), 1000, chunk_size=4, callbacks=[interrupt])
    assert int(state.step) == 8
    assert history.value.shape == (8,)
    np.testing.assert_array_equal(history.value, uninterrupted[1].value[:8])
    assert signal.getsignal(signal.SIGINT) is before
    state, _ = run(state, 4, chunk_size=4)
    assert_same_bits(state, uninterrupted[0])


def test_second_ctrl_c_gets_through():
    before = signal.getsignal(signal.SIGINT)

    def interrupt(state: Any, infos: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(initial(), 8, chunk_size=4, callbacks=[interrupt])
    assert signal.getsignal(signal.SIGINT) is before


def test_callbacks_see_every_chunk_and_can_stop():
    seen, shown = [], []

    def first(state: Any, infos: Any) -> bool:
        seen.append((int(state.step), infos.value.shape))
        return int(state.step) >= 8

    def second(state: Any, infos: Any) -> None:
        seen.append("second")

    def progress(step: int, num_steps: int, metrics: dict[str, float]) -> None:
        shown.append((step, num_steps, metrics))

    state, history = run(
        initial(), 20, chunk_size=4, callbacks=[first, second], progress=progress
    )
    assert int(state.step) == 8
    assert seen == [(4, (4,)), "second", (8, (4,)), "second"]
    assert [entry[:2] for entry in shown] == [(4, 20), (8, 20)]
    assert shown[1][2]["value"] == history.value[-1]
    assert {"gradient_norm", "inner_steps"} <= set(shown[0][2])
    assert "trustworthy" not in shown[0][2]  # without a certificate nobody looked


def test_a_callback_that_raises_leaves_no_handler_behind():
    before = signal.getsignal(signal.SIGINT)

    def fail(state: Any, infos: Any) -> None:
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        run(initial(), 4, chunk_size=4, callbacks=[fail])
    assert signal.getsignal(signal.SIGINT) is before


def test_the_callers_state_and_what_callbacks_keep_stays_valid():
    state, kept = initial(), []
    run(
        state,
        8,
        chunk_size=4,
        callbacks=[lambda s, _: kept.append(np.asarray(s.outer))],
    )
    np.testing.assert_array_equal(state.outer, OUTER)
    assert int(state.step) == 0
    assert bool(jnp.all(jnp.isfinite(state.warm_start.rule)))
    assert not np.array_equal(kept[0], kept[1])


def test_no_steps_give_an_empty_history(uninterrupted: Any):
    state, history = run(initial(), 0)
    assert_same_bits(state, initial())
    assert history.value.shape == (0,)
    assert history.value.dtype == uninterrupted[1].value.dtype
    assert jax.tree.structure(history) == jax.tree.structure(uninterrupted[1])


def test_one_batch_for_all_steps():
    batches = bilevel.Batches(DATA, DATA)
    constant, _ = bilevel.run(SOLVER, initial(), batches, num_steps=3)
    samples = bilevel.Samples(samplers.full(DATA), samplers.full(DATA))
    sampled, _ = bilevel.run(SOLVER, initial(), samples, num_steps=3)
    assert_same_bits(constant, sampled)


def test_data_of_another_type():
    batches = bilevel.Batches(DATA, DATA)
    for wrong in (lambda key: batches, (DATA, DATA), None):
        with pytest.raises(ValueError, match=r"bilevel.Samples\(inner="):
            bilevel.run(SOLVER, initial(), wrong, num_steps=3)


def test_chunks_grow_where_steps_are_short(uninterrupted: Any):
    """Progress is told of few chunks; neither bits nor history depend on them."""
    seen = []
    state, history = run(
        initial(), 60, progress=lambda step, num, metrics: seen.append((step, metrics))
    )
    steps = [step for step, _ in seen]
    assert steps[-1] == 60
    assert len(steps) < 30
    assert steps == sorted(steps)
    assert seen[-1][1]["value"] == history.value[-1]
    assert history.value.shape == (60,)
    np.testing.assert_array_equal(history.value[:12], uninterrupted[1].value)
    chunked, _ = run(initial(), 60, chunk_size=60)
    assert_same_bits(state, chunked)


def test_number_of_steps_does_not_change_the_number_of_traces():
    calls = 0

    def counted(w: Any, x: Any, batch: Any) -> jax.Array:
        nonlocal calls
        calls += 1
        return ridge(w, x, batch)

    solver = solvers.two_loop(
        bilevel.Problem(counted, validation),
        inner_solvers.gradient_descent(0.2, max_steps=5),
        outer_optimizer=optax.sgd(0.05),
    )
    counts = []
    for num_steps in (10, 100):
        calls = 0
        bilevel.run(solver, initial_for(solver), SAMPLES, num_steps=num_steps)
        counts.append(calls)
    assert counts[0] == counts[1] <= 6


def compilations(action: Any) -> int:
    """How many programs XLA compiles for an action."""
    count = 0

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        action()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return count


@pytest.mark.thorough
def test_a_solver_made_anew_is_not_compiled_anew():
    def go(penalty: float, weight: float, length: int = 4) -> Any:
        problem = bilevel.Problem(
            lambda w, x, b: ridge(w, x, b[0]) + b[1] * jnp.sum(w**2),
            lambda w, x, b: weight * validation(w, x, b),
        )
        solver = solvers.two_loop(
            problem,
            inner_solvers.gradient_descent(0.2, max_steps=5),
            outer_optimizer=optax.sgd(0.05),
        )
        batches = bilevel.Batches((DATA, penalty), DATA)
        state = initial_for(solver)
        return bilevel.run(solver, state, batches, num_steps=length)[0]

    first = go(0.1, 1.0)
    assert compilations(lambda: go(0.1, 1.0)) == 0
    # Another value in the batch is no other program; it has its effect.
    assert compilations(lambda: go(0.3, 1.0)) == 0
    assert not jnp.array_equal(go(0.3, 1.0).outer, first.outer)
    assert_same_bits(go(0.1, 1.0), first)
    # Another value in a closure is one.
    assert compilations(lambda: go(0.1, 3.0)) >= 1
    assert not jnp.array_equal(go(0.1, 3.0).outer, first.outer)


def initial_for(solver: Any) -> Any:
    return solver.init(START, OUTER, jax.random.key(1))


class Info(NamedTuple):
    """Fields of every kind."""

    value: Any
    flag: Any
    vector: Any
    nested: Any


def test_last_metrics_are_the_scalars():
    info = Info(np.array([1.0, 2.0]), np.array([True, False]), np.ones((2, 3)), {})
    assert last_metrics(info) == {"value": 2.0, "flag": 0.0}
    assert last_metrics({"value": np.ones(2)}) == {}
    assert last_metrics(Info(np.ones(0), None, None, None)) == {}
