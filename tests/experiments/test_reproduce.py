"""A run repeated in another clone: the same bits, or the right cause."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bilevel
from bilevel import load_run
from bilevel.__main__ import main
from bilevel.experiments import reproduce, seal
from bilevel.experiments.reproduce import ReproduceError

REPOSITORY = Path(bilevel.__file__).parents[1]

PROGRAM = '''
"""A random walk over data from a file."""

import dataclasses
import pathlib

import jax
import numpy as np

import bilevel
from bilevel.experiments import config


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    rate: float = config.field(0.1, help="step size")
    seed: int = config.field(0, help="of the noise")
    note: str | None = None
    widths: tuple[int, ...] = (2, 3)


def main(config, run):
    data = np.loadtxt(pathlib.Path(run.data_dir) / "data.txt", dtype=np.float32)
    run.record_data(split_seed=config.seed, train=data)
    state = {"position": jax.numpy.asarray(data), "key": jax.random.key(config.seed)}
    state, first = run.restore(state) or (state, 0)
    for step in range(first + 1, 11):
        key = jax.random.fold_in(state["key"], step)
        noise = jax.random.normal(key, data.shape)
        state["position"] = state["position"] * 0.9 + config.rate * noise
        run.log(step, mean=state["position"].mean(), odd=float("nan"))
        run.save(step, state, force=step % 4 == 0)
    run.save(10, state, force=True)
    run.finish({})


if __name__ == "__main__":
    bilevel.launch(main)
'''

CONFIG = """
from walk import Config

def get_config():
    return Config()
"""


def run_in(
    folder: Path, *command: str, **variables: str
) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NPROC": "1", **variables}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder.parent), str(folder)])
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def git(folder: Path, *arguments: str) -> None:
    command = ("git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments)
    done = run_in(folder, *command)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A finished run, zipped up, and another clone of its repository."""
    top = tmp_path_factory.mktemp("reproduce")
    first = top / "first"
    # Not the repository: somebody may be working in it.
    shutil.copytree(REPOSITORY / "bilevel", top / "bilevel")
    (first / "programs").mkdir(parents=True)
    (first / "programs" / "walk.py").write_text(PROGRAM)
    (first / "config.py").write_text(CONFIG)
    (top / "data").mkdir()
    (top / "data" / "data.txt").write_text("1\n2\n3\n")
    git(first, "init", "-q")
    git(first, "add", ".")
    git(first, "commit", "-qm", "a walk")
    command = ["programs/walk.py", "--config=config.py", "--cfg.rate=0.2"]
    command += ["--data_dir=../data", "--workdir=../run"]
    done = run_in(first, sys.executable, *command)
    assert done.returncode == 0, done.stderr
    git(top, "clone", "-q", "first", "clone")
    shutil.rmtree(first)
    return top


@pytest.fixture
def again(recorded, monkeypatch, capfd):
    """Runs the command in the clone; returns exit code and output."""

    def started(*arguments, run="run", data="data", threads=1):
        monkeypatch.chdir(recorded / "clone")
        monkeypatch.setenv("NPROC", str(threads))
        path = os.pathsep.join([str(recorded), str(recorded / "clone")])
        monkeypatch.setenv("PYTHONPATH", path)
        rest = [one for one in arguments if one.startswith("--cfg")]
        own = [one for one in arguments if one not in rest]
        flags = ["--", f"--data_dir=../{data}", *rest]
        code = main(["reproduce", f"../{run}", *own, *flags])
        return code, "".join(capfd.readouterr())

    return started


def test_bit_identical(again):
    code, said = again()
    assert said.startswith(
        "bit-identical: 10 lines of metrics and 4 states, to step 10\nnew run"
    )
    assert code == 0


def test_another_seed(again):
    code, said = again("--steps=1", "--cfg.seed=1")
    assert code == 1
    assert "differs first at step 0: the state had sha256 " in said
    assert "likely cause, the likeliest first:\n  config seed: 0 -> 1\n" in said


def test_other_data_and_other_threads(again, recorded):
    (recorded / "other").mkdir(exist_ok=True)
    (recorded / "other" / "data.txt").write_text("1\n2\n4\n")
    code, said = again(data="other", threads=3)
    assert code == 1
    assert "\n  data train: float32 3 sha256 " in said
    assert "\n  threads: 1 -> 3\n" in said


def test_other_code(again, recorded):
    path = recorded / "clone" / "programs" / "walk.py"
    path.write_text(PROGRAM.replace("0.9", "0.8"))
    try:
        code, said = again("--steps=2")
    finally:
        path.write_text(PROGRAM)
    assert code == 1
    assert "differs first at step 1: mean was " in said
    assert "\n  code: commit " in said
    assert " with changes\n" in said


def test_other_package_and_threads_but_the_same_bits(again, recorded):
    """As if the record came from a machine with another jax."""
    shutil.copytree(recorded / "run", recorded / "older", dirs_exist_ok=True)
    path = recorded / "older" / "starts" / "1" / "environment.json"
    content = json.loads(path.read_text())
    running = content["packages"]["jax"]
    content["packages"]["jax"] = "0.0.1"
    path.write_text(json.dumps(content))
    summary = (recorded / "older" / "summary.json").read_text()
    seal.write(recorded / "older", summary)
    code, said = again("--steps=5", run="older", threads=3)
    assert code == 0
    assert said.startswith(
        "bit-identical: 5 lines of metrics and 2 states, to step 5\n"
        "although this differs:\n"
        "  threads: 1 -> 3\n"
        f"  package jax: 0.0.1 -> {running}\n"
    )


def test_a_repetition_that_does_less_is_not_the_same(recorded, tmp_path):
    shorter = tmp_path / "run"
    shutil.copytree(recorded / "run", shorter)
    for name in ("metrics.jsonl", "digests.jsonl"):
        lines = (shorter / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= 8]
        (shorter / name).write_text("".join(kept))
    record = load_run(recorded / "run")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: expected sha256"):
        again = load_run(shorter, damaged="warn")
    found = reproduce.compare(record, again)
    assert found.first_difference == "the record ended at step 10, now ended at step 8"
    assert reproduce.compare(record, again, 8).first_difference is None


def test_results_are_compared_but_for_times(recorded, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(recorded / "run", other)
    path = other / "summary.json"
    summary = json.loads(path.read_text())
    record = load_run(recorded / "run")
    record.summary["result"] = {"rows": {"w": 1.0, "seconds": 3.0}}
    for w, expected in ((1.0, None), (2.0, "result.rows.w was 1.0, is 2.0")):
        summary["result"] = {"rows": {"w": w, "seconds": 4.0}}
        path.write_text(json.dumps(summary))
        seal.write(other, path.read_text())
        assert reproduce.compare(record, load_run(other)).first_difference == expected


def test_program_that_fails(again, recorded):
    code, said = again(data="nowhere")
    assert code == 2
    assert "error: the program ended with code 1; what it said stands above" in said


def test_mistakes_are_one_message(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("nowhere is no run: it has no config.json\n")
    assert said.count("\n") == 1


def test_no_program(recorded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReproduceError, match="go to a clone of the program's reposi"):
        reproduce.reproduce(recorded / "run")


def test_config_that_was_edited(recorded, capsys):
    shutil.copytree(recorded / "run", recorded / "edited")
    path = recorded / "edited" / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
    assert main(["reproduce", str(recorded / "edited")]) == 2
    assert "config.json: expected sha256" in capsys.readouterr().err
