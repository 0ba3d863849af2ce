"""The folder of a run: what is written, what is kept on resume, what is refused."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.experiments import config, digests, metrics, step_folder
from bilevel.experiments.checkpoint import CheckpointError
from bilevel.experiments.folders import FolderError, claim, is_finished
from bilevel.experiments.journal import StoppedAfter
from bilevel.experiments.run_folder import open_run

CONFIG = config.of(rate=0.1)


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "a"
    claim(directory, CONFIG)
    return directory


def lines(folder):
    text = (folder / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert all(one.pop("time") >= 0 for one in found)
    return found


def test_log_values(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5, solver="cg", count=3, done=True, nothing=None)
        run.log(
            np.int64(2),
            array=jnp.asarray(0.25, jnp.bfloat16),
            vector=jnp.arange(2),
            scalar=np.float32(1.5),
        )
        run.log(step=3, nan=jnp.nan, up=math.inf, down=-np.inf)
        assert len(lines(folder)) == 3  # on the disk before the run closes
    assert lines(folder) == [
        {"step": 1, "loss": 0.5, "solver": "cg", "count": 3, "done": True}
        | {"nothing": None},
        {"step": 2, "array": 0.25, "vector": [0, 1], "scalar": 1.5},
        {"step": 3, "nan": "NaN", "up": "Infinity", "down": "-Infinity"},
    ]
    assert math.isnan(float(lines(folder)[2]["nan"]))
    assert float(lines(folder)[2]["down"]) == -math.inf


def test_log_refuses_what_json_lacks(folder):
    with (
        open_run(folder) as run,
        pytest.raises(ValueError, match=r"metrics\.data\.x is a object, which JSON"),
    ):
        run.log(1, data={"x": object()})
    assert metrics.read(folder / "metrics.jsonl") == []


def test_finish(folder):
    with open_run(folder) as run:
        run.save(7, {"x": jnp.ones(2)}, force=True)
        run.finish({"loss": jnp.float32(0.5), "digest": "ab", "best": [1, math.nan]})
        assert (folder / "ckpt" / "7").is_dir()  # complete before the run is
    assert is_finished(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.pop("time") >= 0
    assert summary == {
        "status": "finished",
        "result": {"loss": 0.5, "digest": "ab", "best": [1, "NaN"]},
        "step": 7,
        "state_sha256": digests.digest({"x": jnp.ones(2)}),
        "best_step": None,
    }


def test_paths(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with open_run("a", data_dir="data") as run:
        assert run.directory == folder
        assert str(run.data_dir) == "data"
        run.path("figures/loss.txt").write_text("figure")
        monkeypatch.chdir("/")
        run.log(1)
    assert (folder / "figures" / "loss.txt").read_text() == "figure"
    assert lines(folder) == [{"step": 1}]
    with open_run(folder) as run:
        assert run.data_dir is None


def test_resume_drops_later_and_broken_lines(folder):
    state = {"x": jnp.zeros(())}
    with open_run(folder, save_every=2) as run:
        assert run.restore(state) is None
        for step in range(1, 6):
            run.log(step, loss=step)
            assert run.save(step, {"x": jnp.asarray(step, float)}) == (step % 2 == 0)
    saved = [one["step"] for one in metrics.read(folder / "digests.jsonl")]
    assert saved == [0, 2, 4]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with open_run(folder, save_every=2) as run:
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
        found, step = run.restore(state)
        assert (float(found["x"]), step) == (4.0, 4)
        run.log(5, loss=50)
        assert not run.save(5, state)
    assert lines(folder) == [{"step": s, "loss": s} for s in range(1, 5)] + [
        {"step": 5, "loss": 50}
    ]


def test_start_again_without_checkpoint(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5)
        run.log(2, loss=0.4)
    with open_run(folder) as run:
        assert len(lines(folder)) == 2  # opening changes nothing
        run.log(1, loss=0.5)
    assert lines(folder) == [{"step": 1, "loss": 0.5}]


def test_writing_before_restore_is_refused(folder):
    state = {"x": jnp.zeros(())}
    with open_run(folder) as run:
        run.log(3, loss=0.5)
        assert run.save(3, state, force=True)
    with open_run(folder) as run:
        match = r"holds step 3: call run\.restore\(template\) before run\.log"
        with pytest.raises(RuntimeError, match=match):
            run.log(1, loss=0.5)
        with pytest.raises(RuntimeError, match=match):
            run.save(1, state)
        run.restore(state)
        run.log(4, loss=0.4)
    assert [line["step"] for line in lines(folder)] == [3, 4]


def test_restore_makes_the_first_checkpoint(folder):
    state = {"x": jnp.ones(2)}
    with open_run(folder) as run:
        assert run.restore(state) is None
    with open_run(folder) as run:
        found, step = run.restore({"x": jnp.zeros(2)})
    assert step == 0
    assert digests.digest(found) == digests.digest(state)


def test_abstract_template_makes_none(folder):
    with open_run(folder) as run:
        assert run.restore({"x": jax.ShapeDtypeStruct((2,), jnp.float32)}) is None
    assert not (folder / "ckpt").exists()


def test_first_best_and_two_latest_are_kept(folder):
    with open_run(folder, save_every=1) as run:
        run.restore({"x": jnp.asarray(0.0)})
        for step, loss in enumerate([3.0, 1.0, math.nan, 2.0, 4.0, 5.0], start=1):
            run.save(step, {"x": jnp.asarray(float(step))}, metric=loss)
        run.finish({})
    assert step_folder.steps(folder / "ckpt") == [0, 2, 5, 6]
    assert step_folder.best_step(folder / "ckpt") == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["best_step"], summary["step"]) == (2, 6)


def test_metric_must_be_a_number(folder):
    with open_run(folder) as run, pytest.raises(metrics.MetricsError, match="one num"):
        run.save(1, {"x": jnp.ones(2)}, force=True, metric="low")


def test_restore_step_sets_later_ones_aside(folder):
    state = {"x": jnp.asarray(0.0)}
    with open_run(folder, save_every=1) as run:
        run.restore(state)
        for step in (1, 2, 3):
            run.log(step, loss=step)
            run.save(step, {"x": jnp.asarray(float(step))})
    with pytest.raises(FolderError, match=r"holds no step 1; there are \[0, 2, 3\]"):
        with open_run(folder, restore_step=1):
            pass
    for count in (1, 2):
        with open_run(folder, save_every=1, restore_step=2) as run:
            found, step = run.restore(state)
            assert (float(found["x"]), step) == (2.0, 2)
            assert [one["step"] for one in lines(folder)] == [1, 2]
            run.log(3, loss=30)
            run.save(3, {"x": jnp.asarray(30.0 + count)})
    aside = folder / "ckpt-set-aside"
    assert sorted(one.name for one in aside.iterdir()) == ["3", "3-2"]


def test_damage_and_the_way_back(folder):
    state = {"x": jnp.zeros(1000)}
    with open_run(folder, save_every=1) as run:
        run.restore(state)
        for step in (1, 2):
            run.save(step, {"x": jnp.full(1000, float(step))})
    victim = folder / "ckpt" / "2" / "leaves.json"
    victim.write_text(victim.read_text().replace("float", "floas"))
    with open_run(folder) as run, pytest.raises(CheckpointError) as caught:
        run.restore(state)
    assert "leaves.json: expected sha256" in str(caught.value)
    assert "Step 1 is intact: resume from it with --restore_step=1" in str(caught.value)
    with open_run(folder, restore_step=1) as run:
        assert run.restore(state)[1] == 1
    with pytest.raises(FolderError, match="holds no step 2"):
        with open_run(folder, restore_step=2):
            pass


def test_save_steps_and_stop_after(folder):
    def go(run):
        run.restore({"x": jnp.asarray(0.0)})
        for step in range(1, 6):
            run.save(step, {"x": jnp.asarray(float(step))})
            run.log(step, loss=step)

    with open_run(folder, save_every=1, save_steps=(0, 2, 4), stop_after=3) as run:
        with pytest.raises(StoppedAfter, match="stopped after step 3"):
            go(run)
    assert [one["step"] for one in lines(folder)] == [1, 2, 3]
    assert step_folder.steps(folder / "ckpt") == [0, 2]


def test_data_are_recorded_and_kept(folder):
    examples = {"inputs": np.arange(6.0).reshape(2, 3), "labels": np.arange(2)}
    with open_run(folder) as run:
        run.record_data(train=examples, split_seed=3)
        run.record_data(test=jnp.ones(2))
    with open_run(folder) as run:
        run.record_data(train=examples, split_seed=3)
        for changed in (
            {"train": {**examples, "labels": np.array([0, 2])}, "split_seed": 3},
            {"train": examples, "split_seed": 4},
        ):
            with pytest.raises(FolderError, match=r"the data of the run in .*"):
                run.record_data(**changed)
    stored = json.loads((folder / "data.json").read_text())
    assert sorted(stored) == ["test", "train['inputs']", "train['labels']"]
    entry = stored["train['inputs']"]
    assert (entry["shape"], entry["dtype"], entry["split_seed"]) == (
        [2, 3],
        "float64",
        3,
    )
    raw = examples["inputs"].tobytes()
    assert entry["sha256"] == hashlib.sha256(raw).hexdigest()


def test_time_goes_on_where_it_was(folder):
    with open_run(folder) as run:
        run.restore({"x": jnp.ones(())})
        run.save(1, {"x": jnp.ones(())}, force=True)
        run.log(1)
    path = folder / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 100.5}\n')
    with open_run(folder) as run:
        run.restore({"x": jnp.ones(())})
        run.log(2)
    assert metrics.read(path)[1]["time"] >= 100.5


# What Orbax's threads leave behind when the folder they write to disappears.
orbax_may_fail = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)


def delete(folder):
    """As `rm -rf` does, also while something is being written there."""
    # Not before Orbax has made its folders: it would wait for them for five minutes.
    while list(folder.glob("ckpt/*")) and not list(folder.glob("ckpt/*/state*/*")):
        time.sleep(0.001)
    shutil.rmtree(folder, ignore_errors=True)


@orbax_may_fail
def test_folder_deleted_while_running_is_put_back(folder):
    state = {"x": jnp.zeros(2)}
    with open_run(folder) as run:
        run.record_data(train=jnp.ones(3))
        run.restore(state)
        run.log(1, loss=0.5)
        before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        delete(folder)
        run.log(2, loss=0.25)
        with pytest.raises(FolderError) as caught:
            run.save(2, {"x": jnp.ones(2)})  # not due, and yet
    assert str(caught.value) == (
        f"{folder} was deleted while the run was writing to it; what was in memory is"
        f" in {folder} again, with the state of step 2; earlier states are lost. The"
        f" same command with --workdir={folder} goes on"
    )
    for name in ("config.json", "config.py.txt", "data.json", ".gitignore"):
        assert (folder / name).read_bytes() == before[name]
    assert claim(folder, CONFIG) == "unfinished"
    with open_run(folder) as run:
        restored, step = run.restore(state)
        assert [row["loss"] for row in run.metrics()] == [0.5, 0.25]
    assert step == 2
    np.testing.assert_array_equal(restored["x"], np.ones(2))


@orbax_may_fail
def test_folder_deleted_and_taken_by_another_run(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5)
        delete(folder)
        claim(folder, config.of(rate=0.2))
        with open_run(folder) as other:
            other.log(1, loss=9.0)
            with pytest.raises(FolderError, match=r"-rescued-.*with the state of step"):
                run.save(1, {"x": jnp.ones(2)}, force=True)
            assert [row["loss"] for row in other.metrics()] == [9.0]
    (rescued,) = folder.parent.glob("a-rescued-*")
    assert claim(rescued, CONFIG) == "unfinished"
    assert [row["loss"] for row in metrics.read(rescued / "metrics.jsonl")] == [0.5]


@orbax_may_fail
def test_folder_deleted_while_a_save_is_under_way(folder):
    state = {"x": jnp.ones(1_000_000)}
    with open_run(folder, save_seconds=0.0) as run:
        run.restore(state)
        run.save(1, state)
        delete(folder)
        with pytest.raises(FolderError, match="with the state of step 2"):
            run.save(2, state)
    with open_run(folder) as run:
        assert run.restore(state)[1] == 2


@orbax_may_fail
def test_half_deleted_step_is_no_obstacle(folder):
    state = {"x": jnp.ones(2)}
    with open_run(folder) as run:
        run.restore(state)
        delete(folder)
        (folder / "ckpt" / "0" / "state").mkdir(parents=True)
        with pytest.raises(FolderError, match="with the state of step 2"):
            run.save(2, state)
    with open_run(folder) as run:
        assert run.restore(state)[1] == 2


def test_half_deleted_step_that_still_grows_is_removed(tmp_path):
    """As where Orbax's threads go on with a save whose folder was deleted."""
    step = tmp_path / "0"
    step.mkdir()
    until = time.monotonic() + 0.3

    def grow():
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                step.mkdir(exist_ok=True)
                (step / str(time.monotonic_ns())).touch()

    thread = threading.Thread(target=grow)
    thread.start()
    while thread.is_alive():
        assert step_folder.remove_unsaved(tmp_path, mark=None) == []
    thread.join()
    step_folder.remove_unsaved(tmp_path, mark=None)
    assert not step.exists()


@orbax_may_fail
def test_folder_deleted_before_the_end(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5)
        delete(folder)
        with pytest.raises(FolderError, match="metrics and summary; the states are"):
            run.finish({"loss": 0.5})
    assert is_finished(folder)
    assert [row["loss"] for row in metrics.read(folder / "metrics.jsonl")] == [0.5]


@orbax_may_fail
def test_folder_deleted_while_the_last_save_is_under_way(folder, capsys):
    with open_run(folder) as run:
        run.restore({"x": jnp.ones(1_000_000)})
        run.log(1, loss=0.5)
        run.save(1, {"x": jnp.ones(1_000_000)}, force=True)
        delete(folder)
        with pytest.raises(FolderError, match="with metrics and summary; the states"):
            run.finish({"loss": 0.5})
    assert is_finished(folder)
    assert "states are lost" not in capsys.readouterr().err  # said once


@orbax_may_fail
def test_folder_deleted_and_no_further_save(folder, capsys):
    def fails():
        with open_run(folder) as run:
            run.log(1, loss=0.5)
            delete(folder)
            run.log(2, loss=0.25)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert "states are lost" in capsys.readouterr().err
    losses = [row["loss"] for row in metrics.read(folder / "metrics.jsonl")]
    assert losses == [0.5, 0.25]
    assert claim(folder, CONFIG) == "unfinished"


@orbax_may_fail
def test_folder_deleted_and_taken_gets_no_data(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5)
        delete(folder)
        claim(folder, config.of(rate=0.2))
        with pytest.raises(FolderError, match="-rescued-"):
            run.record_data(train=jnp.ones(3))
    assert not (folder / "data.json").exists()


def test_finished_run_keeps_what_it_has(folder):
    state = {"x": jnp.ones(2)}
    with open_run(folder) as run:
        run.restore(state)
        run.save(2, state, force=True)
        run.log(2, loss=0.5)
        run.log(3, accuracy=0.9)
        run.finish({"accuracy": 0.9})
    before = (folder / "metrics.jsonl").read_text()
    with open_run(folder) as run:
        assert run.restore(state)[1] == 2
        run.log(3, accuracy=0.9)  # the same cell once more
        assert not run.save(2, state, force=True)
        for write in (lambda: run.log(4, x=1), lambda: run.save(4, state, force=True)):
            with pytest.raises(FolderError, match="is finished, at step 3; give anoth"):
                write()
    assert (folder / "metrics.jsonl").read_text() == before


def test_arrays_of_64_bits_are_told_apart(folder):
    with open_run(folder) as run:
        run.record_data(ids=np.array([2**40 + 1, 7]))
    with (
        open_run(folder) as run,
        pytest.raises(FolderError, match="the data of the run in"),
    ):
        run.record_data(ids=np.array([2**41 + 1, 7]))
    assert json.loads((folder / "data.json").read_text())["ids"]["dtype"] == "int64"


def test_open_files_do_not_pile_up(folder):
    with open_run(folder) as run:
        run.record_data(train=jnp.ones(3))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            run.record_data(train=jnp.ones(3))
        assert len(os.listdir("/proc/self/fd")) == before


@orbax_may_fail
def test_what_a_program_adds_is_not_held_in_memory(folder):
    with open_run(folder) as run:
        run.path("weights.npz").write_bytes(bytes(1000))
        run.record_data(train=jnp.ones(3))
        run.log(1, loss=0.5)
        delete(folder)
        with pytest.raises(FolderError, match="with the state of step 1"):
            run.save(1, {"x": jnp.ones(2)})
    assert (folder / "data.json").exists()
    assert not (folder / "weights.npz").exists()


@orbax_may_fail
def test_folder_deleted_for_good(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5)
        delete(folder)
        folder.write_text("a file")
        with pytest.raises(FolderError, match="cannot write to"):
            run.save(1, {"x": jnp.ones(2)})


def test_two_processes(folder):
    code = """
import sys
from bilevel.experiments import open_run
from bilevel.experiments.folders import FolderError
try:
    with open_run(sys.argv[1]):
        pass
except FolderError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(folder)]

    def other() -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with open_run(folder):
        said = other()
    assert said == (
        f"process {os.getpid()} is writing to {folder}; wait for it, or give another"
        " --workdir"
    )
    assert other() == ""


def test_disk_full(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5)
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(FolderError) as caught:
            run.log(2, loss=0.4)
    assert str(caught.value).startswith(
        f"cannot write to {folder}: No space left on device; what was written before"
    )
