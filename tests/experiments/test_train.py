"""The usual loop: what is logged, saved and resumed, and how it ends."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import Batches, Problem, Samples, samplers, solvers
from bilevel.experiments import digests, metrics, step_folder, train
from bilevel.experiments.folders import claim
from bilevel.experiments.journal import StoppedAfter
from bilevel.experiments.run_folder import open_run


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    rate: float = 0.1


PROBLEM = Problem(
    lambda w, x, b: jnp.sum((w - x) ** 2) / 2, lambda w, x, b: jnp.sum((w - b) ** 2)
)
SOLVER = solvers.two_loop(PROBLEM, outer_optimizer=optax.adam(0.1))


def drawn(key, draw):
    return jax.random.normal(jax.random.fold_in(key, draw), (3,))


SAMPLES = Samples(inner=samplers.full(None), outer=drawn)


def start():
    return SOLVER.init(jnp.zeros(3), jnp.ones(3), jax.random.key(0))


@pytest.fixture
def folder(tmp_path):
    claim(tmp_path / "a", Config())
    return tmp_path / "a"


def trained(folder, num_steps=7, chunk_size=2, **options):
    with open_run(folder, **options) as run:
        return train(
            run, SOLVER, start(), SAMPLES, num_steps=num_steps, chunk_size=chunk_size
        )


def lines(folder):
    rows = metrics.read(folder / "metrics.jsonl")
    for row in rows:
        del row["time"]
    return rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "a"
    claim(folder, Config())
    return trained(folder), folder


@pytest.mark.thorough
def test_every_step_is_logged_with_its_info(whole):
    state, folder = whole
    assert int(state.step) == 7
    rows = lines(folder)
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert all(row["inner_converged"] is True for row in rows)
    assert {"value", "gradient_norm", "inner_steps"} <= rows[0].keys()


@pytest.mark.thorough
def test_the_first_the_best_and_the_last_are_kept(whole, folder):
    trained(folder, save_every=2)
    values = [row["value"] for row in lines(folder)]
    ends = [2, 4, 6, 7]  # the last chunk, of one step, is saved without being due
    best = min(ends, key=lambda step: values[step - 1])
    kept = step_folder.steps(folder / "ckpt")
    assert kept[0] == 0
    assert kept[-1] == 7
    assert step_folder.best_step(folder / "ckpt") == best


@pytest.mark.parametrize(("stop", "chunk_size"), [(2, 2), (4, 2), (6, 2), (3, 1)])
@pytest.mark.thorough
def test_resumed_run_has_the_same_bits(whole, folder, stop, chunk_size):
    with pytest.raises(StoppedAfter):
        trained(folder, chunk_size=chunk_size, save_every=1, stop_after=stop)
    state = trained(folder, chunk_size=chunk_size, save_every=1)
    assert digests.digest(state) == digests.digest(whole[0])
    assert lines(folder) == lines(whole[1])


def test_a_finished_run_is_left_as_it_is(folder):
    state = trained(folder)
    again = trained(folder)
    assert digests.digest(state) == digests.digest(again)
    assert len(lines(folder)) == 7


def test_a_callback_ends_the_run_and_the_state_is_saved(folder):
    with open_run(folder) as run, pytest.raises(KeyboardInterrupt):
        train(
            run,
            SOLVER,
            start(),
            SAMPLES,
            num_steps=7,
            chunk_size=2,
            callbacks=[lambda state, infos: int(state.step) == 4],
        )
    assert step_folder.latest_step(folder / "ckpt") == 4


def test_a_loss_that_is_not_finite(folder):
    bad = Batches(None, jnp.full(3, jnp.inf))

    with open_run(folder) as run:
        with pytest.raises(
            FloatingPointError, match="not finite at step 2: value = inf, the state"
        ):
            train(run, SOLVER, start(), bad, num_steps=7, chunk_size=2)
    assert step_folder.steps(folder / "ckpt") == [0]
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["value"] == "Infinity"
    assert np.isinf(lines(folder)[0]["value"])


def test_a_state_that_is_not_finite_is_not_saved(folder):
    """The metric of a step is that of the state before it."""
    problem = Problem(
        lambda w, x, batch: (w - x) ** 2, lambda w, x, batch: jnp.sqrt(jnp.abs(w - 3))
    )
    solver = solvers.two_loop(problem, outer_optimizer=optax.sgd(0.1))
    first = solver.init(jnp.float32(3), jnp.float32(3), jax.random.key(0))
    with open_run(folder) as run:
        with pytest.raises(
            FloatingPointError, match=r"not finite at step 1: the state"
        ):
            train(run, solver, first, Batches(), num_steps=5, chunk_size=1)
        assert step_folder.steps(folder / "ckpt") == [0]
