"""The folder of a run: what is written, what is kept on resume, what is refused."""

import errno
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel.datasets import files, manifest
from bilevel.experiments import config, digests, metrics, step_folder
from bilevel.experiments.checkpoint import CheckpointError
from bilevel.experiments.folders import FolderError, claim, is_finished
from bilevel.experiments.journal import StoppedAfter
from bilevel.experiments.run_folder import open_run

CONFIG = config.of(rate=0.1)
LINES = ("metrics.jsonl", "digests.jsonl")


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
        "lines": {"metrics.jsonl": 0, "digests.jsonl": 1},
        "missing": {"metrics.jsonl": 0, "digests.jsonl": 0},
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


DELETED = "was deleted, or replaced, while the run was writing to it"


@pytest.mark.parametrize("is_taken", [False, True])
def test_folder_deleted_while_running_stops_the_run(folder, is_taken):
    def go():
        with open_run(folder) as run:
            run.log(1, loss=0.5)
            shutil.rmtree(folder)
            if is_taken:
                claim(folder, config.of(rate=0.2))
            before = sorted(folder.rglob("*"))
            for write in (
                lambda: run.log(2, loss=0.25),
                lambda: run.save(2, {"x": jnp.ones(2)}, force=True),
                lambda: run.record_data(train=jnp.ones(3)),
                lambda: run.finish({"loss": 0.5}),
            ):
                with pytest.raises(FolderError, match=DELETED):
                    write()
            assert sorted(folder.rglob("*")) == before

    with pytest.raises(FolderError, match=DELETED):  # not silent at the end, either
        go()


@orbax_may_fail
def test_folder_deleted_while_a_save_is_under_way(folder):
    def go():
        with open_run(folder, save_seconds=0.0) as run:
            run.restore({"x": jnp.ones(1_000_000)})
            run.save(1, {"x": jnp.ones(1_000_000)})
            delete(folder)

    with pytest.raises(FolderError, match=DELETED):
        go()


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


@pytest.mark.thorough
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


def test_disk_full(folder, monkeypatch):
    def refuses(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_run(folder) as run:
        run.log(1, loss=0.5)
        monkeypatch.setattr(files, "append", refuses)
        with pytest.raises(FolderError) as caught:
            run.log(2, loss=0.4)
    assert str(caught.value).startswith(
        f"cannot write to {folder}: No space left on device; what was written before"
    )


# -- findings X2, X3, X5, X6, X10 -----------------------------------------------------


def write_steps(folder, num_steps, finish=False, **options):
    """Goes on to a step; the state after step i is i."""
    with open_run(folder, save_every=1, **options) as run:
        state, done = run.restore({"x": jnp.zeros(2)}) or ({"x": jnp.zeros(2)}, 0)
        for step in range(done + 1, num_steps + 1):
            run.log(step, loss=float(step))
            run.save(step, {"x": jnp.full(2, float(step))})
        if finish:
            run.finish({"loss": 1.0})
    return done, float(state["x"][0])


def test_x2_a_step_without_its_seal_is_set_aside(folder, capsys):
    write_steps(folder, 3)
    (folder / "ckpt" / "3" / "SHA256SUMS").unlink()
    before = (folder / "ckpt" / "3" / "leaves.json").read_bytes()
    assert write_steps(folder, 2) == (2, 2.0)
    aside = folder / "ckpt-set-aside" / "3"
    assert (aside / "leaves.json").read_bytes() == before
    said = f"its save was cut short, or a copy of it; it is set aside in {aside}"
    assert said in capsys.readouterr().err
    assert said in (folder / "log.txt").read_text()


def test_x2_a_finished_run_without_the_seal_of_a_step_is_refused(folder):
    write_steps(folder, 3, finish=True)
    (folder / "ckpt" / "3" / "SHA256SUMS").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(FolderError, match="ckpt/3: is missing or has no seal; summary"):
        write_steps(folder, 3)
    with pytest.raises(FolderError, match="is finished, and going back to step 2 woul"):
        write_steps(folder, 3, restore_step=2)
    assert sorted(folder.rglob("*")) == before


def test_x2_lines_that_are_in_the_way_are_set_aside(folder):
    write_steps(folder, 3)
    whole = {name: (folder / name).read_text() for name in LINES}
    write_steps(folder, 2, restore_step=2)
    for name, text in whole.items():
        kept = (folder / name).read_text()
        assert kept + (folder / f"{name}-set-aside").read_text() == text
        assert text != kept


@pytest.mark.parametrize("options", [{}, {"restore_step": 2}])
def test_x3_damage_in_an_old_step_stops_nothing(folder, capsys, options):
    write_steps(folder, 3)
    path = folder / "ckpt" / "0" / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace("_timestamp_nsecs", "_timestampWnsecs"))
    last = options.get("restore_step", 3)
    assert write_steps(folder, 5, **options) == (last, float(last))
    said = capsys.readouterr().err
    assert "step 0 is damaged; it is set aside in " in said
    assert "_CHECKPOINT_METADATA: expected sha256" in said
    assert (folder / "ckpt-set-aside" / "0" / "leaves.json").exists()
    assert [one["step"] for one in lines(folder)] == [1, 2, 3, 4, 5]


def test_x5_lines_are_on_the_disk_before_a_step_counts(folder, monkeypatch):
    events = []
    sync, write = files.sync, files.replace_bytes
    monkeypatch.setattr(files, "sync", lambda p: events.append(Path(p)) or sync(p))
    monkeypatch.setattr(
        manifest, "replace_bytes", lambda p, b: events.append(Path(p)) or write(p, b)
    )
    write_steps(folder, 1)
    sealed = events.index(folder / "ckpt" / "1" / "SHA256SUMS")
    first = sealed - events[sealed::-1].index(folder / "metrics.jsonl")
    assert {folder / "metrics.jsonl", folder / "digests.jsonl"} <= set(events[:sealed])
    synced = set(events[first:sealed])
    step = folder / "ckpt" / "1"
    assert {one for one in step.rglob("*") if one.name != "SHA256SUMS"} <= synced
    links = step_folder.read(step).links
    assert links.lines == {"metrics.jsonl": 1, "digests.jsonl": 2}
    assert links.parent == (0, digests.digest({"x": jnp.zeros(2)}))


def test_x5_a_hole_in_the_curve_is_said_and_not_forgotten(folder, capsys):
    write_steps(folder, 6)
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[:4]))
    with pytest.raises(
        FolderError, match="has 4 lines up to step 6; there were 6 when"
    ):
        bilevel.load_run(folder)
    write_steps(folder, 7)
    said = (
        "lost 2 of the 6 lines that it had when step 6 was saved; --restore_step=0 co"
    )
    assert said in capsys.readouterr().err
    for finish in (False, True):  # also after one more resume, and at the end
        write_steps(folder, 8, finish=finish)
        with pytest.warns(
            UserWarning, match=r"metrics\.jsonl lacks 2 lines, lost befor"
        ):
            run = bilevel.load_run(folder)
        assert run.column("loss")[0] == [1, 2, 3, 4, 7, 8]
    with open_run(folder) as run:  # nor when it is finished with another result
        run.restore({"x": jnp.zeros(2)})
        run.finish({"loss": 2.0})
    with pytest.warns(UserWarning, match=r"metrics\.jsonl lacks 2 lines, lost befor"):
        assert bilevel.load_run(folder).summary["result"] == {"loss": 2.0}


def test_an_end_needs_what_the_run_was(folder):
    write_steps(folder, 1)
    with (
        open_run(folder) as run,
        pytest.raises(RuntimeError, match=r"call run\.restore"),
    ):
        run.finish({})


def test_a_hole_is_filled_from_an_earlier_step(folder):
    write_steps(folder, 6)
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[:4]))
    write_steps(folder, 7, finish=True, restore_step=0)
    assert bilevel.load_run(folder).column("loss")[0] == [1, 2, 3, 4, 5, 6, 7]


def test_lines_of_later_steps_before_a_save_are_no_hole(folder):
    with open_run(folder, save_every=1) as run:
        run.restore({"x": jnp.zeros(2)})
        for step in (9, 1, 2):  # a forecast
            run.log(step, loss=0.5)
        run.save(2, {"x": jnp.ones(2)})
    write_steps(folder, 3)
    assert [one["step"] for one in lines(folder)] == [1, 2, 3]
    assert bilevel.load_run(folder).steps == [0, 2, 3]


def test_x6_a_broken_line_is_set_aside_on_resume(folder, capsys):
    write_steps(folder, 4)
    path = folder / "metrics.jsonl"
    text = path.read_text().splitlines(True)
    path.write_text("".join([*text[:2], text[2][:9] + "\n", text[3]]))
    with pytest.raises(FolderError, match=r"metrics\.jsonl: line 3 is broken"):
        bilevel.load_run(folder)
    with pytest.warns(UserWarning, match="line 3 is broken"):
        run = bilevel.load_run(folder, damaged="warn")
    assert run.column("loss")[0] == [1, 2, 4]
    write_steps(folder, 5)
    assert [one["step"] for one in lines(folder)] == [1, 2, 4, 5]
    said = capsys.readouterr().err
    assert (
        "1 broken lines of metrics.jsonl are set aside in metrics.jsonl-set-a" in said
    )
    assert "lost 1 of the 4 lines" in said
    assert (folder / "metrics.jsonl-set-aside").read_text() == text[2][:9] + "\n"


def test_x6_a_log_that_failed_leaves_no_trace(folder, monkeypatch):
    """A disk that was full for a moment, in the middle of a line."""
    with open_run(folder) as run:
        run.log(1, loss=1.0)
        size = (folder / "metrics.jsonl").stat().st_size
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, old[1]))
        try:
            with pytest.raises(FolderError, match="File too large"):
                run.log(2, loss=2.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        run.log(3, loss=3.0)
    assert bilevel.load_run(folder).column("loss") == ([1, 3], [1.0, 3.0])


@pytest.mark.parametrize("step", [-1, 2.7])
def test_x10_steps_are_whole_numbers(folder, step):
    with open_run(folder) as run:
        for write in (
            lambda: run.log(step, loss=1.0),
            lambda: run.save(step, {"x": jnp.ones(2)}, force=True),
        ):
            with pytest.raises(metrics.MetricsError, match="a step is a whole number"):
                write()
    assert not (folder / "metrics.jsonl").exists()
    assert not (folder / "ckpt").exists()


def test_nothing_follows_the_end(folder):
    with open_run(folder) as run:
        run.log(1, loss=1.0)
        run.finish({})
        with pytest.raises(FolderError, match="is finished, at step 1"):
            run.log(1, loss=2.0)
