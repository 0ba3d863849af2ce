"""What is recorded of every start, and how two starts differ."""

import datetime
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import bilevel
from bilevel.experiments import environment, source, starts
from bilevel.experiments.folders import FolderError
from bilevel.experiments.starts import Start

FLAGS = {"deterministic": True, "save_every": 10, "save_steps": None}


@pytest.fixture(autouse=True)
def _recorded(monkeypatch, tmp_path):
    """A fixed environment, and bilevel from no repository."""
    for name in [one for one in os.environ if one.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.org")
    record = {"threads": 2, "packages": {"jax": "1"}, "python": "3.11"}
    record["random_numbers"] = "as expected"
    monkeypatch.setattr(
        environment, "record", lambda lock: {**record, "lock": lock and lock.name}
    )
    installed = tmp_path / "site-packages" / "bilevel"
    installed.mkdir(parents=True)
    monkeypatch.setattr(bilevel, "__file__", str(installed / "__init__.py"))


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_bytes(b"print('caf\xc3\xa9')\n")
    return tmp_path / "program.py"


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True)


def repository(top, name="program.py"):
    """Makes a repository with one committed file."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    (top / name).parent.mkdir(parents=True, exist_ok=True)
    (top / name).write_text("x = 1\n")
    git(top, "init", "-q")
    git(top, "add", ".")
    git(top, "commit", "-qm", "first")
    return top / name


def write(directory, program):
    return starts.write(directory, str(program), [str(program), "--cfg.a=1"], FLAGS)


def names(directory, number):
    folder = directory / "starts" / str(number)
    return sorted(one.name for one in folder.iterdir())


def test_write_and_read(directory, program, tmp_path):
    (tmp_path / "requirements.lock").touch()
    assert starts.read_all(directory) == []
    before = datetime.datetime.now().astimezone().replace(microsecond=0)
    written = write(directory, program)
    time = datetime.datetime.fromisoformat(written.command["time"])
    assert before <= time <= datetime.datetime.now().astimezone()
    assert written.command["argv"] == [str(program), "--cfg.a=1"]
    assert written.command["flags"] == FLAGS
    assert written.environment["lock"] == "requirements.lock"
    assert written.source["program"]["commit"] is None
    assert written.source["bilevel"] is None


def test_read_all_in_order(directory, program):
    written = [write(directory, program) for _ in range(11)]
    assert starts.read_all(directory) == written
    assert len(list((directory / "starts").iterdir())) == 11


def test_program_outside_of_git_is_kept(directory, program):
    write(directory, program)
    assert names(directory, 1) == [
        "command.json",
        "diff.patch",
        "environment.json",
        "program.py.txt",
        "source.json",
    ]
    folder = directory / "starts" / "1"
    assert (folder / "program.py.txt").read_bytes() == program.read_bytes()
    assert (folder / "diff.patch").read_bytes() == b""
    program.unlink()
    write(directory, program)
    assert "program.py.txt" not in names(directory, 2)


def test_patch_holds_the_bytes(directory, tmp_path):
    program = repository(tmp_path / "code")
    (tmp_path / "code" / "latin.txt").write_bytes(b"caf\xe9\r\n")
    found = write(directory, program)
    assert found.source["program"]["is_complete"]
    assert found.source["program"]["program"] == "program.py"
    assert "program.py.txt" not in names(directory, 1)
    patch = directory / "starts" / "1" / "diff.patch"
    assert b"+caf\xe9\r\n" in patch.read_bytes()
    git(tmp_path, "clone", "-q", "code", "clone")
    git(tmp_path / "clone", "apply", str(patch))
    assert (tmp_path / "clone" / "latin.txt").read_bytes() == b"caf\xe9\r\n"


def test_a_half_written_start_is_ignored_and_kept(directory, program):
    first = write(directory, program)
    half = directory / "starts" / "2"
    half.mkdir()
    (half / "source.json").write_text('{"prog')
    (half / "bilevel.patch").write_text("of another start")
    assert starts.read_all(directory) == [first]
    second = write(directory, program)
    assert starts.read_all(directory) == [first, second]
    assert names(directory, 3) == names(directory, 1)
    assert names(directory, 2) == ["bilevel.patch", "source.json"]


@pytest.mark.parametrize("name", ["command.json", "environment.json", "source.json"])
def test_damage_is_named(directory, program, name):
    write(directory, program)
    path = directory / "starts" / "1" / name
    path.write_text(path.read_text()[:-5])
    with pytest.raises(FolderError, match=rf"1/{name} is damaged \("):
        starts.read_all(directory)


def test_disk_refuses(directory, program):
    (directory / "starts").touch()
    with pytest.raises(FolderError, match=f"cannot write to {directory}: "):
        write(directory, program)


# -- bilevel itself -------------------------------------------------------------------


def test_bilevel_in_a_repository_of_its_own(directory, program, tmp_path, monkeypatch):
    package = repository(tmp_path / "library", "bilevel/__init__.py")
    package.write_text("x = 2\n")
    monkeypatch.setattr(bilevel, "__file__", str(package))
    found = write(directory, program)
    assert found.source["bilevel"]["program"] == "bilevel/__init__.py"
    assert found.source["bilevel"]["is_dirty"]
    patch = (directory / "starts" / "1" / "bilevel.patch").read_text()
    assert "\n-x = 1\n+x = 2\n" in patch
    # Through a link, as some installers make them.
    (tmp_path / "link").symlink_to(package.parent)
    monkeypatch.setattr(bilevel, "__file__", str(tmp_path / "link" / "__init__.py"))
    assert write(directory, program).source == found.source


def test_bilevel_in_the_repository_of_the_program(directory, tmp_path, monkeypatch):
    package = repository(tmp_path / "library", "bilevel/__init__.py")
    monkeypatch.setattr(bilevel, "__file__", str(package))
    found = write(directory, tmp_path / "library" / "examples" / "x.py")
    assert found.source["bilevel"] is None
    assert "bilevel.patch" not in names(directory, 1)


def test_bilevel_installed_within_a_repository(directory, tmp_path, monkeypatch):
    program = repository(tmp_path / "code")
    package = tmp_path / "code" / ".venv" / "bilevel" / "__init__.py"
    package.parent.mkdir(parents=True)
    monkeypatch.setattr(bilevel, "__file__", str(package))
    assert write(directory, program).source["bilevel"] is None
    other = tmp_path / "program.py"
    assert write(directory, other).source["bilevel"] is None


# -- differences ----------------------------------------------------------------------


def code(tree, commit="0123456789abcdef", is_dirty=False):
    return {"tree": tree, "commit": commit, "is_dirty": is_dirty}


NO_CODE = {"commit": None, "is_complete": False, "reason": "no git repository"}


def start(program, library=None, **environment):
    return Start({}, environment, {"program": program, "bilevel": library})


def test_equal_code_is_no_difference():
    one = start(code("t"), threads=1)
    assert starts.difference(one, one) == []
    # Committed since: other commit, same files.
    other = start(code("t", commit="f" * 40), threads=1)
    before = start(code("t", is_dirty=True), threads=1)
    assert starts.difference(before, other) == []
    assert starts.difference(start(NO_CODE), start(NO_CODE)) == []


def test_code_is_the_likeliest_cause():
    before = start(code("t"), code("l"), threads=1, python="3.11")
    now = start(
        code("u", is_dirty=True), code("m", commit="f" * 40), threads=2, python="3.13"
    )
    assert starts.difference(before, now) == [
        "code: commit 0123456789ab -> commit 0123456789ab with changes",
        "code of bilevel: commit 0123456789ab -> commit ffffffffffff",
        "threads: 1 -> 2",
        "python: 3.11 -> 3.13",
    ]


def test_repository_that_is_gone():
    assert starts.difference(start(code("t"), code("l")), start(NO_CODE)) == [
        "code: commit 0123456789ab -> no commit",
        "code of bilevel: commit 0123456789ab -> no commit",
    ]


def test_difference_of_real_starts(directory, tmp_path):
    program = repository(tmp_path / "code")
    write(directory, program)
    program.write_text("x = 2\n")
    write(directory, program)
    git(program.parent, "commit", "-qam", "second")
    write(directory, program)
    first, second, third = starts.read_all(directory)
    commits = [one.source["program"]["commit"][:12] for one in (first, third)]
    assert starts.difference(first, second) == [
        f"code: commit {commits[0]} -> commit {commits[0]} with changes"
    ]
    assert starts.difference(first, third) == [
        f"code: commit {commits[0]} -> commit {commits[1]}"
    ]
    assert starts.difference(second, third) == []


def test_real_environment(directory, program, monkeypatch):
    monkeypatch.undo()
    written = write(directory, program)
    assert starts.read_all(directory) == [written]
    assert json.loads(json.dumps(written)) == [*map(dict, written)]
    is_clone = (Path(starts.__file__).parents[2] / ".git").exists()
    has_git = shutil.which("git") is not None
    assert (written.source["bilevel"] is not None) == (is_clone and has_git)


def test_program_outside_of_git_that_changed(directory, program, capsys):
    program.write_text("x = 1")
    starts.record(directory, str(program), [], {})
    assert "no git commit: of the code, the program's own" in capsys.readouterr().err
    starts.record(directory, str(program), [], {})
    assert "since the run was started last" not in capsys.readouterr().err
    program.write_text("x = 2")
    starts.record(directory, str(program), [], {})
    said = capsys.readouterr().err
    assert re.search(r"code: no commit, program sha256 \w{12} -> no commit", said)


def test_source_that_is_too_large_is_said(directory, tmp_path, monkeypatch, capsys):
    program = repository(tmp_path / "top")
    program.write_text("x = 2")
    monkeypatch.setattr(source, "_LIMIT", 3)
    starts.record(directory, str(program), [], {})
    said = capsys.readouterr().err
    assert "the recorded source of program is not complete:\n  the changes are" in said
    assert (directory / "starts" / "1" / "program.py.txt").read_text() == "x = 2"
