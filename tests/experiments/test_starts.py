"""What is recorded of every start, and how two starts differ."""

import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import bilevel
from bilevel.experiments import (
    code_difference,
    environment,
    modules,
    redaction,
    source,
    starts,
)
from bilevel.experiments.folders import FolderError
from bilevel.experiments.starts import Start

LOADED = modules.loaded
FLAGS = {"deterministic": True, "save_every": 10, "save_steps": None}


@pytest.fixture(autouse=True)
def _recorded(monkeypatch, tmp_path):
    """A fixed environment, no modules, and bilevel from no repository."""
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
    monkeypatch.setattr(modules, "loaded", dict)
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
    argv = [str(program), "--cfg.a=1"]
    return starts.write(directory, str(program), argv, FLAGS).start


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
    git(tmp_path / "code", "add", "latin.txt")
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


# -- the code that ran ----------------------------------------------------------------


@pytest.fixture
def load(monkeypatch):
    """Makes this process look as if it had loaded files, and nothing else."""
    found = {}
    monkeypatch.setattr(modules, "loaded", lambda: dict(found))

    def loaded(name, path, text="x = 1\n"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        found[name] = path

    return loaded


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_modules_that_no_recorded_tree_holds_are_recorded(
    directory, tmp_path, load, capsys
):
    program = repository(tmp_path / "code")
    (tmp_path / "code" / ".gitignore").write_text("ignored.py\n")
    git(tmp_path / "code", "add", ".gitignore")
    load("__main__", program)
    assert write(directory, program).source["program"]["is_complete"]
    load("ignored", tmp_path / "code" / "ignored.py", "RATE = 1\n")
    load("foreign", tmp_path / "elsewhere" / "foreign.py", "RATE = 2\n")
    load("new", tmp_path / "code" / "new.py", "RATE = 3\n")
    (tmp_path / "code" / "data.csv").write_text("4\n")
    starts.record(directory, str(program), [], FLAGS)
    found = starts.read_all(directory)[-1].source
    assert found["modules"] == {
        "ignored": {"file": "ignored.py", "sha256": digest("RATE = 1\n")},
        "foreign": {
            "file": str(tmp_path / "elsewhere" / "foreign.py"),
            "sha256": digest("RATE = 2\n"),
        },
    }
    assert not found["program"]["is_complete"]
    said = capsys.readouterr().err
    assert "modules from outside of the recorded source, by SHA-256 only:\n" in said
    assert "  ignored (ignored.py)\n" in said
    # One line says what is in the record, and what is not.
    line = (
        "2 new files are in the record (.gitignore, new.py); 1 new files are left out,"
        " but for SHA-256 (data.csv)\n"
    )
    assert line in said
    patch = (directory / "starts" / "2" / "diff.patch").read_text()
    assert "RATE = 3" in patch
    assert "RATE = 1" not in patch


def test_modules_are_looked_at_again_at_the_end(directory, tmp_path, load, capsys):
    program = repository(tmp_path / "code")
    lazy = tmp_path / "code" / "lazy.py"
    lazy.write_text("x = 1\n")
    git(tmp_path / "code", "add", ".")
    git(tmp_path / "code", "commit", "-qm", "lazy")
    load("__main__", program)
    with starts.recorded(directory, str(program), [], FLAGS) as complete:
        first = starts.read_all(directory)[0].source
        assert first["program"]["is_complete"]
        assert code_difference.unknown(first) == [
            "modules that were loaded after the start"
        ]
        load("late", tmp_path / "elsewhere" / "late.py", "RATE = 2\n")
        load("lazy", lazy, "x = 2\n")  # not what was recorded at the start
        os.utime(lazy, (time.time() + 9, time.time() + 9))
        complete()
        load("later", tmp_path / "elsewhere" / "later.py")  # the folder is sealed
    (found,) = starts.read_all(directory)
    assert found.source["modules_at"] == "end"
    digests = {name: one["sha256"] for name, one in found.source["modules"].items()}
    assert digests == {"late": digest("RATE = 2\n"), "lazy": digest("x = 2\n")}
    assert not found.source["program"]["is_complete"]
    assert code_difference.unknown(found.source) == []
    assert "late (" in capsys.readouterr().err


def test_what_is_loaded_by_this_process():
    found = LOADED()
    assert not {"json", "jax", "sys"} & found.keys()
    assert found["bilevel.experiments.modules"] == Path(modules.__file__).resolve()
    assert len({*found.values()}) == len(found)


def test_a_program_that_is_no_file_is_not_called_recorded(
    directory, tmp_path, capsys, monkeypatch
):
    """From standard input, of which the text is gone."""
    monkeypatch.chdir(tmp_path)
    starts.record(directory, "-", ["-"], FLAGS)
    said = capsys.readouterr().err
    assert "the program's own file is recorded" not in said
    assert "no git commit, and the program is no file (standard input, -c)" in said
    program = starts.read_all(directory)[0].source["program"]
    assert (program["sha256"], program["is_complete"]) == (None, False)
    top = repository(tmp_path / "code").parent
    found = write(directory, top / "-").source
    assert found["program"]["commit"]
    assert not found["program"]["is_complete"]
    assert code_difference.unknown(found)[0] == "the text of the program"


def test_an_ignored_program_is_kept(directory, tmp_path):
    program = repository(tmp_path / "code", "other.py").parent / "program.py"
    program.write_text("x = 3\n")
    (program.parent / ".git" / "info" / "exclude").write_text("program.py\n")
    found = write(directory, program)
    assert not found.source["program"]["is_complete"]
    assert found.source["modules"] == {}
    kept = directory / "starts" / "1" / "program.py.txt"
    assert kept.read_text() == "x = 3\n"


def record_of(modules=None, program=None, **others):
    code = {"tree": "t", "commit": "c" * 40, "is_dirty": False, "sha256": "s"}
    found = {"program": code | (program or {}), "bilevel": None}
    return found | {"modules": modules or {}, "modules_at": "end"} | others


def test_modules_and_submodules_are_compared():
    one, two = ({"file": "m.py", "sha256": 64 * digit} for digit in "12")
    old, new = record_of({"m": one}), record_of({"m": two})
    assert code_difference.code(old, old) == []
    assert code_difference.code(old, new) == [
        f"code: module m sha256 {12 * '1'} -> {12 * '2'}"
    ]
    assert code_difference.code(old, record_of()) == [
        "code: modules m were loaded from outside of the recorded source, now not"
    ]
    assert code_difference.code(record_of(), old) == [
        "code: modules m are loaded from outside of the recorded source, before not"
    ]
    inner = [record_of(program={"submodules": {"a": {"tree": t}}}) for t in "xy"]
    assert code_difference.code(*inner) == [
        "code: commit cccccccccccc -> commit cccccccccccc"
    ]


def test_what_is_unknown_is_listed():
    assert code_difference.unknown(record_of()) == []
    found = code_difference.unknown(
        record_of(
            {"m": {"file": "m.zip/m.py", "sha256": None}},
            {"sha256": None, "tree": None, "left_out": ["data.csv"]},
            modules_at="start",
        )
    )
    assert found == [
        "the text of the program",
        "the changes to the program's repository",
        "modules that were loaded after the start",
        "the content of m.zip/m.py, data.csv",
    ]


def test_files_that_are_left_out_are_compared():
    old = record_of(program={"left_out": {"a": "1", "b": "2", "c": None}})
    new = record_of(program={"left_out": {"a": "1", "b": "3", "d": "4"}})
    assert code_difference.other_files(old, old) == []
    assert code_difference.other_files(old, new) == [
        "files that are not in git: changed: b; gone: c; new: d"
    ]
    assert code_difference.code(old, new) == []


# -- secrets --------------------------------------------------------------------------


def test_secrets_of_the_command_are_left_out(directory, program, capsys):
    argv = ["x.py", "--token=hunter2", "--rate=1", "--password", "hunter2", "--verbose"]
    argv += ["--note=see hf_" + "a1" * 10]
    starts.record(directory, str(program), argv, FLAGS)
    assert starts.read_all(directory)[0].command["argv"] == [
        *("x.py", "--token=(left out)", "--rate=1", "--password", "(left out)"),
        *("--verbose", "--note=see (left out)"),
    ]
    said = capsys.readouterr().err
    assert "the values of --token, --password, --note are left out\n" in said


CELLS = """
import os
os.environ["WANDB_API_KEY"] = "hunter2"
os.environ.setdefault('HF_TOKEN', 'hunter2')
%env MY_SECRET=hunter2
%env XLA_FLAGS=--kept
login(token="hunter2", user="kept")
api_key: str = f"hunter2"
headers = {"Authorization": "Bearer hunter2"}
password = '''hunter
hunter2'''
key = jax.random.key(3)
max_tokens = "kept"
client("sk-aaaaaaaaaaaahunter2")
"""


def test_secrets_of_cells_are_left_out():
    text, names = redaction.redacted_code(CELLS)
    assert "hunter" not in text
    assert text.count("kept") == CELLS.count("kept")
    assert "key = jax.random.key(3)\n" in text
    expected = "WANDB_API_KEY HF_TOKEN MY_SECRET token api_key Authorization password"
    assert sorted(names) == sorted([*expected.split(), "a key"])
    plain = "x = 1\nloss(key, 'a')\n"
    assert redaction.redacted_code(plain) == (plain, [])
