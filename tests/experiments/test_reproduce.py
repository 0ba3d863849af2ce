"""A run repeated in another clone: the same bits, or the right cause."""

import hashlib
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


def test_bit_identical(again, recorded):
    code, said = again()
    assert said.startswith(
        "bit-identical: 10 lines of metrics and 4 states, to step 10\n"
    )
    assert code == 0
    # Before that, on standard error, what is run.
    clone = recorded / "clone"
    program, text = clone / "programs" / "walk.py", (clone / "config.py").read_bytes()
    assert f"\nruns {program}\n  sha256 " in said
    commit = load_run(recorded / "run").starts[0].source["program"]["commit"]
    assert f"\n  in {clone}, commit {commit}; the record has commit {commit}\n" in said
    digest = hashlib.sha256(text).hexdigest()
    assert f"config.py.txt, sha256 {digest}: config.py of the clone\n" in said


@pytest.mark.thorough
def test_another_seed(again):
    code, said = again("--steps=1", "--cfg.seed=1")
    assert code == 1
    assert "differs first at step 0: the state had sha256 " in said
    assert "likely cause, the likeliest first:\n  config seed: 0 -> 1\n" in said


@pytest.mark.thorough
def test_other_data_and_other_threads(again, recorded):
    (recorded / "other").mkdir(exist_ok=True)
    (recorded / "other" / "data.txt").write_text("1\n2\n4\n")
    code, said = again(data="other", threads=3)
    assert code == 1
    assert "\n  data train: float32 3 sha256 " in said
    assert "\n  threads: 1 -> 3\n" in said


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_program_that_fails(again, recorded):
    code, said = again(data="nowhere")
    assert code == 2
    assert "error: the program ended with code 1; what it said stands above" in said


# -- what is executed -----------------------------------------------------------------


def resealed(folder):
    """Whoever means it makes the seal fit."""
    seal.write(folder, (folder / "summary.json").read_text())


@pytest.fixture
def hostile(recorded, tmp_path, monkeypatch):
    """Changes a copy of the run, as somebody might before sending it."""
    folder = recorded / "clone" / "received"
    shutil.copytree(recorded / "run", folder)
    monkeypatch.chdir(recorded / "clone")
    started = []

    def run(command, **options):
        started.append(command)
        return subprocess.CompletedProcess(command, 1)

    # Of git all, of programs none.
    real = subprocess.run
    monkeypatch.setattr(
        reproduce.subprocess,
        "run",
        lambda command, **options: (real if command[0] == "git" else run)(
            command, **options
        ),
    )

    def changed(name=None, **changes):
        if name is not None:
            path = folder / "starts" / "1" / name
            content = json.loads(path.read_text())
            content.setdefault("program", {})
            if name == "source.json":
                content["program"] |= changes
            else:
                content |= changes
            path.write_text(json.dumps(content))
        resealed(folder)
        return folder, started

    yield changed
    shutil.rmtree(folder)


def test_a_configuration_that_is_no_file_of_the_clone_is_asked_about(hostile, capsys):
    folder, started = hostile()
    path = folder / "config.py.txt"
    path.write_text(path.read_text() + "import os; os.system('touch RAN')\n")
    resealed(folder)
    assert main(["reproduce", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "not run, for this is not the code of the clone:\n  " in said
    assert f"{path} (sha256 " in said
    assert f"configuration: {path}, sha256 " in said
    assert "read it, and pass --yes" in said
    assert not started
    assert main(["reproduce", str(folder), "--yes"]) == 2  # the program ends with 1
    (command,) = started
    assert command[2] == f"--config={path}"
    with pytest.raises(ReproduceError, match="not the code of the clone"):
        reproduce.reproduce(folder)
    with pytest.raises(ReproduceError, match="ended with code 1"):
        reproduce.reproduce(folder, confirm=lambda plan: bool(plan.foreign))


def test_a_configuration_of_the_clone_needs_no_consent(hostile):
    folder, started = hostile()
    assert main(["reproduce", str(folder)]) == 2
    assert len(started) == 1


@pytest.mark.parametrize(
    "program",
    ["/etc/evil.py", "../evil.py", "received/evil.py", "programs/../../evil.py"],
)
def test_a_program_outside_of_the_clone_is_refused(hostile, capsys, program):
    folder, started = hostile("source.json", program=program)
    for path in (folder / "evil.py", folder.parent.parent / "evil.py"):
        path.write_text("import os; os.system('touch RAN')\n")
    assert main(["reproduce", str(folder), "--yes"]) == 2
    assert "names a program that is not in the clone" in capsys.readouterr().err
    assert not started


def test_a_program_that_git_does_not_know_is_asked_about(hostile, recorded, capsys):
    path = recorded / "clone" / "scratch.py"
    path.write_text("print(1)\n")
    folder, started = hostile("source.json", program="scratch.py")
    try:
        assert main(["reproduce", str(folder)]) == 2
    finally:
        path.unlink()
    assert f"clone:\n  {path} (sha256 " in capsys.readouterr().err
    assert not started


def test_outside_of_a_repository_the_record_names_no_program(
    hostile, tmp_path, monkeypatch, capsys
):
    """argv[0] may be a file of the folder."""
    folder, started = hostile()
    evil = folder / "evil.py"
    evil.write_text("")
    hostile("command.json", argv=[str(evil)])
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", str(folder), "--yes"]) == 2
    assert "or pass --program=<file>" in capsys.readouterr().err
    assert not started


def test_help_says_that_code_is_executed(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "The code of the folder is executed" in said
    assert "--yes" in said


@pytest.mark.parametrize("name", ["command.json", "source.json"])
def test_a_record_of_another_form_is_one_message(hostile, capsys, name):
    folder, started = hostile()
    (folder / "starts" / "1" / name).write_text('{"program": []}')
    resealed(folder)
    assert main(["reproduce", str(folder)]) == 2
    assert "its record is damaged" in capsys.readouterr().err
    assert not started


# -- what is not known is not called equal --------------------------------------------


def compared(recorded, tmp_path, change, *, threads=1):
    """Compares the run with a copy that has another metric, and a changed record."""
    other = tmp_path / "run"
    shutil.copytree(recorded / "run", other)
    record, again = load_run(recorded / "run"), load_run(other)
    again.metrics[2]["mean"] = 7.0
    for run in (record, again):
        run.starts[0].environment.update(threads=threads, str_hash="fixed")
    change(record, again)
    return reproduce.compare(record, again).text().splitlines()


def test_what_is_known_is_named(recorded, tmp_path):
    lines = compared(recorded, tmp_path, lambda record, again: None)
    assert lines[2:] == [
        "no cause is known: configuration, code, recorded data, environment, threads"
        " are those of the record"
    ]
    shutil.rmtree(tmp_path / "run")
    lines = compared(recorded, tmp_path, lambda record, again: None, threads=2)
    assert lines[3].startswith("XLA with several threads is not always determ")


def test_what_nobody_recorded_is_said(recorded, tmp_path):
    def change(record, again):
        for run in (record, again):
            run.data.clear()
            run.starts[0].source["program"]["sha256"] = None
            run.starts[0].environment["str_hash"] = "random"
        again.starts[0].source["modules_at"] = "start"

    assert compared(recorded, tmp_path, change)[2:] == [
        "no cause is known: configuration, environment, threads are those of the"
        " record",
        "not known: the text of the program; modules that were loaded after the start;"
        " the data, of which none is recorded; the order of sets of texts"
        " (PYTHONHASHSEED is not set)",
    ]


def test_an_ignored_module_is_the_cause(recorded, tmp_path):
    def change(record, again):
        for run, digit in ((record, "1"), (again, "2")):
            one = {"file": "mymod.py", "sha256": 64 * digit}
            run.starts[0].source["modules"]["mymod"] = one

    assert compared(recorded, tmp_path, change)[2:] == [
        "likely cause, the likeliest first:",
        f"  code: module mymod sha256 {12 * '1'} -> {12 * '2'}",
    ]


def test_kernels_of_numpy_are_the_cause(recorded, tmp_path):
    def change(record, again):
        again.starts[0].environment["variables"]["OPENBLAS_CORETYPE"] = "NEHALEM"
        again.starts[0].environment["numpy"]["bits"] = "0" * 12

    lines = compared(recorded, tmp_path, change)
    assert "  variable OPENBLAS_CORETYPE: None -> NEHALEM" in lines
    assert any(one.startswith("  numpy bits: ") for one in lines)


def test_a_record_cannot_write_to_the_terminal(recorded, tmp_path):
    def change(record, again):
        again.starts[0].environment["packages"]["jax"] = "x\n\x1b[2Jbit-identical"

    lines = compared(recorded, tmp_path, change)
    assert [one for one in lines if one.endswith("-> x\\n\\x1b[2Jbit-identical")]


@pytest.mark.thorough
def test_code_that_git_does_not_see(recorded):
    """An ignored module is changed: the run says so, and a repetition names it."""
    top = recorded / "ignoring"
    top.mkdir()
    body = PROGRAM.replace("0.9", "RATE").replace(
        "import numpy", "from mymod import RATE\nimport numpy"
    )
    (top / "walk.py").write_text(body)
    (top / "config.py").write_text(CONFIG)
    (top / ".gitignore").write_text("mymod.py\n__pycache__/\n")
    git(top, "init", "-q")
    git(top, "add", ".")
    git(top, "commit", "-qm", "a walk")
    (top / "mymod.py").write_text("RATE = 0.9\n")
    command = [sys.executable, "walk.py", "--config=config.py", "--data_dir=../data"]
    done = run_in(top, *command, "--workdir=../ignored")
    assert "\n  mymod (mymod.py)\n" in done.stderr
    program = load_run(recorded / "ignored").starts[0].source["program"]
    assert program["is_dirty"] is False
    assert program["is_complete"] is False
    (top / "mymod.py").write_text("RATE = 0.8\n")
    command = [sys.executable, "-m", "bilevel", "reproduce", "../ignored", "--"]
    done = run_in(top, *command, "--data_dir=../data")
    assert done.returncode == 1
    assert "\n  code: module mymod sha256 " in done.stdout


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
