"""A run read back: what is in it, what is damaged, and that nothing changes."""

import dataclasses
import math
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel.experiments import config, digests, environment, folders, starts
from bilevel.experiments.checkpoint import CheckpointError
from bilevel.experiments.folders import FolderError
from bilevel.experiments.loaded import load_run
from bilevel.experiments.run_folder import open_run


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    inner: Inner = Inner()
    widths: tuple[int, ...] = (2, 3)
    name: str | None = None


CONFIG = Config(inner=Inner(rate=0.25), widths=(4,))
LOSSES = {1: 3.0, 2: 1.0, 3: math.nan, 4: 2.0, 5: 4.0}


class State(NamedTuple):
    inner: dict[str, jax.Array]
    key: jax.Array
    keys: jax.Array
    count: jax.Array


def state_at(step):
    key = jax.random.fold_in(jax.random.key(3), step)
    return State(
        inner={
            "w": jnp.full((2, 3), step / 3, jnp.bfloat16),
            "b": jnp.arange(3.0) + step,
            "is_on": jnp.array([True, False]),
        },
        key=key,
        keys=jax.random.split(jax.random.key(step, impl="rbg"), 2),
        count=jnp.asarray(step, jnp.int32),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of five steps, best after the second."""
    directory = tmp_path_factory.mktemp("runs") / "a"
    folders.claim(directory, CONFIG, source="text of the configuration")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "record", lambda lock: {"threads": 2})
        for _ in range(2):
            starts.write(directory, str(directory / "x.py"), ["x.py"], {})
    with open_run(directory, save_every=1, save_seconds=None) as run:
        run.restore(state_at(0))
        run.record_data(train={"inputs": np.ones((2, 3), np.float32)}, split_seed=3)
        for step, loss in LOSSES.items():
            run.log(step, loss=loss, solver="cg")
            if step % 2 == 0:
                run.log(step, accuracy=jnp.array([step / 10, jnp.inf]))
            run.save(step, state_at(step), metric=loss)
        run.finish({"loss": 4.0, "gap": math.nan})
    return directory


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def same(found, expected):
    return digests.leaf_records(found) == digests.leaf_records(expected)


def listing(folder):
    return {
        path: (
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else None,
        )
        for path in [folder, *folder.rglob("*")]
    }


def test_reading_changes_nothing(finished):
    before = listing(finished)
    run = load_run(finished)
    run.column("loss")
    run.state()
    run.state(state_at(0), step=2)
    with pytest.raises(CheckpointError):
        run.state(step=3)
    assert listing(finished) == before


def test_what_is_in_it(finished, monkeypatch):
    monkeypatch.chdir(finished.parent)
    run = bilevel.load_run("a")
    monkeypatch.chdir("/")
    assert run.directory == finished
    assert run.config == {"inner": {"rate": 0.25}, "widths": [4], "name": None}
    assert config.from_dict(Config, run.config) == CONFIG
    assert run.summary is not None
    assert run.summary["result"]["loss"] == 4.0
    assert run.summary["state_sha256"] == digests.digest(state_at(5))
    assert run.data.keys() == {"train['inputs']"}
    entry = run.data["train['inputs']"]
    assert (entry["shape"], entry["dtype"], entry["split_seed"]) == (
        [2, 3],
        "float32",
        3,
    )
    assert [one.command["argv"] for one in run.starts] == [["x.py"], ["x.py"]]
    assert run.starts[0].environment == {"threads": 2}
    assert run.steps == [0, 2, 4, 5]
    assert run.best_step == 2


def test_metrics(finished):
    run = load_run(finished)
    assert [row["step"] for row in run.metrics] == [1, 2, 2, 3, 4, 4, 5]
    assert {type(row["time"]) for row in run.metrics} == {float}
    steps, losses = run.column("loss")
    assert steps == [1, 2, 3, 4, 5]
    assert math.isnan(losses[2])
    losses[2] = None
    assert losses == [3.0, 1.0, None, 2.0, 4.0]
    assert run.column("accuracy") == ([2, 4], [[0.2, math.inf], [0.4, math.inf]])
    assert run.column("solver")[1] == ["cg"] * 5
    assert run.column("other") == ([], [])


def test_state_without_a_template(finished):
    run = load_run(finished)
    for step, found in ((5, run.state()), (2, run.state(step=2))):
        expected = state_at(step)
        named = digests.named_leaves(expected)
        assert found.keys() == named.keys()
        for name, leaf in named.items():
            assert isinstance(found[name], jax.Array)
            assert found[name].dtype == leaf.dtype
            assert same(found[name], leaf)
    assert found[".inner['w']"].dtype == jnp.bfloat16
    assert found[".inner['b']"].tolist() == [2.0, 3.0, 4.0]
    # A key is one again.
    assert jax.random.bits(found[".key"]) == jax.random.bits(state_at(2).key)
    assert str(jax.random.key_impl(found[".keys"])) == "rbg"


def test_state_with_a_template(finished):
    run = load_run(finished)
    for step in run.steps:
        found = run.state(state_at(0), step=step)
        assert isinstance(found, State)
        assert same(found, state_at(step))
    assert same(run.state(jax.eval_shape(state_at, 0)), state_at(5))
    other = state_at(0)._replace(count=jnp.asarray(0.0, jnp.float32))
    with pytest.raises(CheckpointError, match=r"\.count: stored int32\[\], template f"):
        run.state(other)
    with pytest.raises(CheckpointError, match="holds no step 3; there are 0, 2, 4, 5"):
        run.state(step=3)


def test_state_is_not_tied_to_the_file(copied):
    found = load_run(copied).state(state_at(0))
    shutil.rmtree(copied)
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(found.inner["b"])
    assert doubled.tolist() == [10.0, 12.0, 14.0]


# -- unfinished, or damaged -----------------------------------------------------------


def test_unfinished_run(tmp_path):
    directory = tmp_path / "a"
    folders.claim(directory, CONFIG)
    run = load_run(str(directory))
    assert run == (directory, config.to_dict(CONFIG), [], None, {}, [], [], None)
    with pytest.raises(
        CheckpointError, match="ckpt holds no checkpoint; there are non"
    ):
        run.state()
    with (directory / "metrics.jsonl").open("w") as file:
        file.write('{"step": 1, "time": 0.5, "loss": 2}\n{"step": 2, "lo')
    assert load_run(directory).metrics == [{"step": 1, "time": 0.5, "loss": 2}]


def test_a_run_that_is_being_written(tmp_path):
    directory = tmp_path / "a"
    folders.claim(directory, CONFIG)
    with open_run(directory, save_every=1) as run:
        run.restore(state_at(0))
        run.log(1, loss=0.5)
        run.save(1, state_at(1), metric=0.5)
        assert load_run(directory).column("loss") == ([1], [0.5])
    found = load_run(directory)
    assert (found.summary, found.steps, found.best_step) == (None, [0, 1], 1)


def test_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FolderError, match=f"{path} is no run: it has no config"):
            load_run(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", None])
def test_damaged_config(copied, text):
    path = copied / "config.json"
    path.write_text(path.read_text().replace("0.25", "0.5") if text is None else text)
    for _ in ("sealed", "not"):
        with pytest.raises(FolderError, match=r"config\.json: "):
            load_run(copied)
        with pytest.warns(UserWarning, match=r"config\.json: "):
            run = load_run(copied, damaged="warn")
        assert run.config == {}
        assert run.metrics[0]["loss"] == 3.0
        unfinish(copied)


def unfinish(folder):
    """Makes it as it was before its end."""
    for name in ("SHA256SUMS", "summary.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("name", ["data.json", "starts/1/source.json"])
def test_other_damage_is_named(copied, name, is_sealed):
    if not is_sealed:
        unfinish(copied)
    path = copied / name
    path.write_text(path.read_text()[:-3])
    with pytest.raises(FolderError, match=rf"{name}: (expected sha256|is damaged \()"):
        load_run(copied)


def test_x10_damage_in_a_record_of_a_start_hides_nothing_else(copied):
    path = copied / "starts" / "1" / "environment.json"
    path.write_text(path.read_text()[:-3])
    with pytest.warns(
        UserWarning, match=r"starts/1/environment\.json: expected sha256"
    ):
        run = load_run(copied, damaged="warn")
    assert run.column("loss")[1][0] == 3.0
    assert same(run.state(state_at(0)), state_at(5))
    assert [one.environment for one in run.starts] == [{}, {"threads": 2}]
    assert run.starts[0].command["argv"] == ["x.py"]


def test_damaged_metrics(copied):
    path = copied / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:9], *lines[2:]]))
    unfinish(copied)
    with pytest.raises(FolderError, match=r"metrics\.jsonl: line 2 is broken"):
        load_run(copied)


@pytest.mark.parametrize("victim", ["leaves.json", "SHA256SUMS", "largest"])
def test_a_damaged_checkpoint_hides_nothing_else(copied, victim):
    folder = copied / "ckpt" / "2"
    arrays = [one for one in (folder / "state").rglob("*") if one.is_file()]
    largest = max(arrays, key=lambda one: one.stat().st_size)
    path = largest if victim == "largest" else folder / victim
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=path.name):
        run = load_run(copied, damaged="warn")
    assert run.steps == [0, 2, 4, 5]
    assert run.best_step == (2 if victim == "largest" else 4)
    assert same(run.state(state_at(0)), state_at(5))
    with pytest.raises(
        CheckpointError, match=rf"ckpt/2 is damaged: (?s:.*){path.name}"
    ):
        run.state(step=2)


def test_x2_the_last_state_of_a_finished_run_is_no_other(copied):
    (copied / "ckpt" / "5" / "SHA256SUMS").unlink()
    with pytest.raises(FolderError, match="ckpt/5: is missing or has no seal; summary"):
        load_run(copied)
    with pytest.warns(UserWarning, match="summary.json says that it is the last state"):
        run = load_run(copied, damaged="warn")
    with pytest.raises(
        CheckpointError, match=r"the run ended at step 5, of which .*ckpt"
    ):
        run.state(state_at(0))
    assert same(run.state(state_at(0), step=4), state_at(4))


def test_x2_an_earlier_state_is_not_returned_in_silence(copied):
    unfinish(copied)
    (copied / "ckpt" / "5" / "SHA256SUMS").unlink()
    run = load_run(copied)
    assert run.steps == [0, 2, 4]
    with pytest.warns(
        UserWarning, match=r"step 5 in .* is not complete; this is step 4"
    ):
        found = run.state(state_at(0))
    assert same(found, state_at(4))


def test_damaged_takes_one_of_two_words(finished):
    with pytest.raises(
        ValueError, match="damaged: expected 'raise' or 'warn', got 'no'"
    ):
        load_run(finished, damaged="no")
