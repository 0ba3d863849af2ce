"""Whether a folder is what was written: every flip, cut and loss is found and named."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import pytest
from absl import flags

from bilevel.__main__ import main
from bilevel.datasets import manifest
from bilevel.experiments import config, environment, runs, seal, start_run
from bilevel.experiments.check import check
from bilevel.experiments.folders import FolderError, claim
from bilevel.experiments.launch import launch
from bilevel.experiments.loaded import load_run
from bilevel.experiments.run_folder import open_run

STATE = {"x": jnp.zeros(3)}


def walk(cfg, run, num_steps=3, scale=1.0):
    """Goes on to a step; the state after step i is i times the scale."""
    run.record_data(train=jnp.ones(3))
    _, done = run.restore(STATE) or (STATE, 0)
    for step in range(done + 1, num_steps + 1):
        run.log(step, loss=scale * step)
        run.save(step, {"x": jnp.full(3, scale * step)}, metric=-step)


def finishing(cfg, run):
    walk(cfg, run)
    run.path("figures/mine.txt").write_text("a figure")
    run.finish({"loss": 3.0})
    run.path("after.txt").write_text("the program may go on")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, with all that `launch` writes."""
    directory = tmp_path_factory.mktemp("runs") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "record", lambda lock: ENVIRONMENT)
        with pytest.raises(SystemExit) as caught:
            launch(
                finishing,
                config.of(seed=0),
                argv=[__file__, f"--workdir={directory}", "--save_every=1"],
                flag_values=flags.FlagValues(),
            )
    assert caught.value.code == 0
    return directory


ENVIRONMENT = {"lock": None, "random_numbers": "as expected", "threads": 1}


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs" / "a")
    return tmp_path / "runs" / "a"


@pytest.fixture
def unfinished(tmp_path):
    return make_unfinished(tmp_path / "u")


def make_unfinished(directory, num_steps=3, scale=1.0):
    claim(directory, config.of(seed=0))
    with open_run(directory, save_every=1) as run:
        walk(None, run, num_steps, scale)
    return directory


def files_of(folder):
    return sorted(one for one in folder.rglob("*") if one.is_file())


# -- a finished run -------------------------------------------------------------------


@pytest.mark.thorough
def test_a_finished_run_is_sealed(finished):
    report = check(finished)
    assert report == ({}, [], {}, True, finished)
    assert load_run(finished).column("loss") == ([1, 2, 3], [1.0, 2.0, 3.0])
    names = {one.relative_to(finished).as_posix() for one in files_of(finished)}
    assert manifest.read(finished).keys() == names - {"SHA256SUMS", ".lock"}
    assert {"log.txt", "figures/metrics.png", "after.txt", ".gitignore"} <= names
    assert "starts/1/environment.json" in names
    assert (finished / ".lock").stat().st_size == 0
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
        cwd=finished,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def detections(folder, name):
    """Says of `check`, and of `runs` and so of `load_run`, whether they name a file."""
    is_checked = name in check(folder).wrong
    with (
        pytest.warns(UserWarning, match="left out: ") as said,
        pytest.raises(FolderError, match=r"no run in .* that can be read"),
    ):
        runs.collect(folder.parent, "loss")
    return is_checked, f"{name}: " in str(said[0].message)


def test_x1_forty_flipped_bits_are_found_in_forty(copied):
    """Drawn from all files: twenty with equal chances, twenty in proportion to size."""
    rng = random.Random(0)
    files = [one for one in files_of(copied) if one.stat().st_size]
    sizes = [one.stat().st_size for one in files]
    assert len(files) > 50
    found = []
    for number in range(40):
        (path,) = rng.choices(files, sizes if number >= 20 else None)
        whole = path.read_bytes()
        data, bit = bytearray(whole), rng.randrange(8 * len(whole))
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(data))
        found.append(detections(copied, path.relative_to(copied).as_posix()))
        path.write_bytes(whole)
    assert found == [(True, True)] * 40
    assert check(copied).wrong == {}


@pytest.mark.parametrize("part", [None, 0, 0.5])
def test_x1_every_file_that_is_missing_or_cut_short_is_named(copied, part):
    files = [one for one in files_of(copied) if one.stat().st_size]
    names = {one.relative_to(copied).as_posix() for one in files}
    *others, last = sorted(files, key=lambda one: one == copied / "SHA256SUMS")
    for damaged, named in ((others, names - {"SHA256SUMS"}), ([last], {"SHA256SUMS"})):
        contents = {path: path.read_bytes() for path in damaged}
        for path, whole in contents.items():
            path.unlink()
            if part is not None:
                path.write_bytes(whole[: int(part * len(whole))])
        assert check(copied).wrong.keys() >= named
        for path, whole in contents.items():
            path.write_bytes(whole)
    assert check(copied).wrong == {}


def test_x1_a_file_that_was_added_is_no_part_of_the_record(copied):
    shutil.copytree(copied / "ckpt" / "3", copied / "ckpt" / "4")
    (copied / "note.txt").write_text("mine")
    report = check(copied)
    assert report.notes == ["note.txt is not in the seal: it was added later"]
    assert report.wrong["ckpt/4/leaves.json"].startswith("is not in the seal: it was a")
    assert report.wrong["ckpt/4"] == "is later than the end in summary.json"
    with pytest.raises(FolderError, match=r"ckpt/4/leaves.json: is not in the seal"):
        load_run(copied)


def test_a_seal_that_names_files_outside_is_refused(copied, tmp_path):
    (tmp_path / "other").write_text("not of this run")
    listed = manifest.read(copied)
    for name in ("../../other", str(tmp_path / "other")):
        outside = {name: manifest.file_sha256(tmp_path / "other")}
        manifest.write_digests(copied, {**listed, **outside})
        assert check(copied).wrong == {
            name: "is listed, and lies outside of the folder"
        }


def test_exit_codes(copied, unfinished, capsys):
    assert main(["check", str(copied)]) == 0
    assert capsys.readouterr().out == f"{copied}: every file is as it was sealed\n"
    assert main(["check", str(unfinished)]) == 3
    said = capsys.readouterr().out
    assert said == (
        f"{unfinished}: nothing is known to be wrong\n  the run is not finished, so"
        " that it has no seal\n"
    )
    (copied / "log.txt").unlink()
    assert main(["check", str(unfinished), str(copied)]) == 1
    assert f"{copied} is damaged:\n  log.txt: is missing\n" in capsys.readouterr().out
    assert main(["check", str(copied.parent)]) == 2
    assert "is no run: it has no config.json" in capsys.readouterr().err
    assert main(["reproduce", str(copied)]) == 2
    assert "log.txt: is missing" in capsys.readouterr().err


def test_a_run_of_an_older_version_has_no_seal(copied):
    (copied / "SHA256SUMS").unlink()
    assert check(copied).wrong == {
        "SHA256SUMS": "is missing, although the run is finished"
    }
    path = copied / "summary.json"
    content = json.loads(path.read_text())
    for name in ("lines", "missing"):
        del content[name]
    path.write_text(json.dumps(content))
    report = check(copied)
    assert report.wrong == {}
    assert report.notes == [
        "the run was finished by a version of bilevel that made no seals"
    ]
    assert not report.is_sealed


def test_an_end_that_was_cut_short_comes_again(copied, capsys):
    """A kill between the seal and the summary."""
    (copied / "summary.json").unlink()
    assert check(copied).wrong == {"summary.json": "is missing"}
    with open_run(copied, save_every=1) as run:
        walk(None, run)
        run.finish({"loss": 3.0})
    assert "is sealed, but has no summary.json" in capsys.readouterr().err
    assert (copied / "SHA256SUMS-set-aside").exists()
    report = check(copied)
    assert (report.wrong, report.is_sealed) == ({}, True)


def test_a_finished_run_that_is_opened_again(tmp_path, monkeypatch):
    """As a notebook's cell does: its own figures may be drawn anew, and no more."""
    monkeypatch.setattr(environment, "record", lambda lock: ENVIRONMENT)
    directory = tmp_path / "a"
    for text in ("first", "second"):
        with start_run(config.of(seed=0), directory, save_every=1) as run:
            walk(None, run)
            run.finish({"loss": 3.0})
            run.path("figures/mine.txt").write_text(text)
            assert check(directory).wrong == {}
        report = check(directory)
        assert (report.wrong, report.notes) == ({}, [])
        assert "figures/mine.txt" in manifest.read(directory)
    with start_run(config.of(seed=0), directory) as run:
        with pytest.raises(FolderError, match="is finished; it has no data test"):
            run.record_data(test=jnp.ones(3))
        (directory / "log.txt").write_text("")
    assert check(directory).wrong.keys() == {"log.txt"}  # damage is not sealed
    with pytest.raises(FolderError, match=r"log.txt: expected sha256"):
        with start_run(config.of(seed=0), directory):
            pass


def test_files_that_are_half_written_and_links(copied, tmp_path):
    (copied / ".data.json.tmp").write_text("a remnant")
    (copied / "linked").symlink_to(copied / "starts")
    assert check(copied) == ({}, [], {}, True, copied)
    shutil.move(copied / "ckpt", tmp_path / "large disk")
    (copied / "ckpt").symlink_to(tmp_path / "large disk")
    assert check(copied).wrong == {}
    shutil.copytree(copied / "ckpt" / "3", copied / "ckpt" / "4")
    assert "ckpt/4/leaves.json" in check(copied).wrong


# -- an unfinished run ----------------------------------------------------------------


def foreign_step(folder, tmp_path):
    """The state of another run, under the right number and with the right sums."""
    other = make_unfinished(tmp_path / "other", scale=2.0)
    shutil.rmtree(folder / "ckpt" / "3")
    shutil.copytree(other / "ckpt" / "3", folder / "ckpt" / "3")


def test_x1_the_step_of_another_run_is_refused(unfinished, tmp_path):
    foreign_step(unfinished, tmp_path)
    match = r"ckpt/3:? is a state of step 3 with sha256 .*, but digests\.jsonl has"
    with pytest.raises(FolderError, match=match):
        load_run(unfinished)
    with pytest.warns(UserWarning, match=match):
        run = load_run(unfinished, damaged="warn")
    with pytest.raises(ValueError, match=match):
        run.state()
    with open_run(unfinished) as run, pytest.raises(ValueError, match=match):
        run.restore(STATE)
    assert main(["check", str(unfinished)]) == 1


def test_x1_the_step_of_another_number_is_refused(unfinished, tmp_path):
    other = make_unfinished(tmp_path / "other", num_steps=5)
    shutil.rmtree(unfinished / "ckpt" / "3")
    shutil.copytree(other / "ckpt" / "5", unfinished / "ckpt" / "3")
    with pytest.raises(FolderError, match=r"leaves.json is of step 5, not of this one"):
        load_run(unfinished)
    with pytest.warns(UserWarning, match="is of step 5"):
        run = load_run(unfinished, damaged="warn")
    with pytest.raises(ValueError, match="is of step 5, not of this one"):
        run.state()


def test_x1_a_step_that_follows_another_is_refused(unfinished, tmp_path):
    """Of a run that came to the same state on another way."""
    directory = tmp_path / "other"
    claim(directory, config.of(seed=0))
    with open_run(directory, save_every=1) as run:
        walk(None, run, num_steps=2, scale=2.0)
        run.log(3, loss=3.0)
        run.save(3, {"x": jnp.full(3, 3.0)})
    shutil.rmtree(unfinished / "ckpt" / "3")
    shutil.copytree(directory / "ckpt" / "3", unfinished / "ckpt" / "3")
    match = r"ckpt/3: follows a state of step 2 with sha256 .*, but digests\.jsonl has"
    with pytest.raises(FolderError, match=match):
        load_run(unfinished)


@pytest.mark.parametrize("name", ["metrics.jsonl", "digests.jsonl"])
@pytest.mark.parametrize("num_lines", [0, 1])
def test_x1_lines_that_are_missing_are_noticed(unfinished, name, num_lines):
    path = unfinished / name
    path.write_text("".join(path.read_text().splitlines(True)[:num_lines]))
    match = rf"{name}: has {num_lines} lines up to step 3; there were \d when that step"
    with pytest.raises(FolderError, match=match):
        load_run(unfinished)


def test_x1_a_changed_summary_is_noticed_without_the_seal(copied):
    (copied / "SHA256SUMS").unlink()
    path = copied / "summary.json"
    whole = json.loads(path.read_text())
    for change, name in (
        ({"step": 2}, "ckpt/3"),
        ({"state_sha256": "0" * 64}, "summary.json"),
        ({"lines": {**whole["lines"], "metrics.jsonl": 4}}, "metrics.jsonl"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        assert name in check(copied).wrong


def test_a_step_that_is_being_removed_is_no_damage(unfinished):
    (unfinished / "ckpt" / "2" / "leaves.json").unlink()
    assert load_run(unfinished).steps == [0, 2, 3]
    assert "ckpt/2/leaves.json" in check(unfinished).wrong


def test_seal_of_names(tmp_path):
    (tmp_path / "a b").mkdir()
    for name in ("a b/é", "a b/\n", "x"):
        (tmp_path / name).write_text(name)
    seal.write(tmp_path, "{}", without=["a b/é"])
    assert manifest.read(tmp_path).keys() == {"a b/\n", "x", "summary.json"}
    seal.update(tmp_path, ["x"])
    assert manifest.read(tmp_path).keys() == {"a b/\n", "a b/é", "summary.json"}
    (Path(tmp_path) / "summary.json").write_text("{}")
    seal.update(tmp_path)
    assert seal.differences(tmp_path) == ({}, [])
