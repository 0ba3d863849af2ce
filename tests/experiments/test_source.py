"""The record of source: from commit and diff every file is rebuilt, byte for byte."""

import fnmatch
import hashlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from bilevel.experiments import git as asked
from bilevel.experiments import source

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(autouse=True)
def _plain_git(monkeypatch, tmp_path):
    """No configuration but that of the test, and no repository above it."""
    for name in [one for one in os.environ if one.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.org")


def git(folder, *arguments):
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, check=True
    )
    return done.stdout.decode(errors="surrogateescape").strip()


@pytest.fixture
def repository(tmp_path):
    top = tmp_path / "repository"
    (top / "sub").mkdir(parents=True)
    git(top, "init", "-q", "-b", "trunk")
    (top / "program.py").write_text("print('one')\n" * 20)
    (top / "sub" / "library.py").write_text("x = 1\n" * 20)
    (top / "sub" / "data.bin").write_bytes(bytes(range(256)) * 4)
    (top / "latin.txt").write_bytes(b"caf\xe9\n")
    (top / "script.sh").write_text("#!/bin/sh\n")
    (top / "no_newline.txt").write_text("one\ntwo")
    (top / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    (top / ".gitignore").write_text("*.log\nruns/\n")
    git(top, "add", ".")
    git(top, "commit", "-qm", "first")
    return top


def contents(folder, without=()):
    """Returns what every file is made of."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.startswith(".git/") or name in without:
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            is_executable = bool(path.stat().st_mode & stat.S_IXUSR)
            found[name] = (is_executable, path.read_bytes())
    return found


def rebuilt(top, found):
    """Clones a repository, and does what the docstring of `source` says."""
    clone = top.parent / "clone"
    git(top.parent, "clone", "-q", str(top), "clone")
    git(clone, "checkout", "-q", found.record["commit"])
    if found.diff:
        patch = top.parent / "diff.patch"
        patch.write_bytes(found.diff.encode(errors="surrogateescape"))
        git(clone, "apply", str(patch))
    return contents(clone)


def record(program):
    """Records a program that uses every file there is."""
    top = asked.repository(program)
    used = () if top is None else {one.resolve() for one in top.rglob("*")}
    return source.record(program, used)


def listing(folder):
    """Returns what shows any change of files, and of their times."""
    found = {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }
    # Instead of storing an object once more, git sets the time of the one it has.
    marked = {k for k in found if fnmatch.fnmatch(k, ".git/objects/??/*")}
    return {k: v[1:] if k in marked else v for k, v in found.items()}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def delete_folder(top):
    shutil.rmtree(top / "sub")


def new_files(top):
    for name in ("new.py", "a/b/new.py", "with space.py", " leading", "umläut.py"):
        write(top / name, name.encode())
    write(top / "empty", b"")
    write(top / "tab\tand\nnewline", b"x")
    write(top / "*", b"a file that is named like a pattern\n")
    write(top / ":(top)magic", b"x")
    write(top / "new.bin", bytes(range(256)))
    write(top / "new_latin", b"\xff\xfe \xe9\r\n\x00")
    write(top / "-option", b"x")


def name_that_is_not_utf8(top):
    try:
        write(top / os.fsdecode(b"caf\xe9.py"), b"caf\xe9")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")


def change(top):
    write(top / "program.py", b"print('two')\n" * 20)
    write(top / "no_newline.txt", b"one\nthree")
    write(top / "crlf.txt", b"one\r\nthree\r\n")


def change_some_lines(top):
    lines = (top / "program.py").read_text().splitlines(keepends=True)
    lines[3] = "print('three')  \n"
    lines[15:17] = []
    (top / "program.py").write_text("".join(lines))


def stage(top):
    change(top)
    new_files(top)
    git(top, "add", "--all")


def stage_and_change_again(top):
    stage(top)
    write(top / "program.py", b"print('three')\n")
    write(top / "new.py", b"print('three')\n")
    (top / "empty").unlink()


def replace_by_link(top):
    (top / "latin.txt").unlink()
    (top / "latin.txt").symlink_to("program.py")
    (top / "new_link").symlink_to("sub/library.py")


def replace_by_folder(top):
    (top / "latin.txt").unlink()
    write(top / "latin.txt" / "a.txt", b"x")
    delete_folder(top)
    write(top / "sub", b"a file\n")


def resolve_a_conflict(top):
    """Leaves a merge with conflicts in the index."""
    git(top, "checkout", "-qb", "other")
    write(top / "program.py", b"other\n")
    git(top, "commit", "-qam", "other")
    git(top, "checkout", "-q", "trunk")
    write(top / "program.py", b"trunk\n")
    git(top, "commit", "-qam", "trunk")
    with pytest.raises(subprocess.CalledProcessError):
        git(top, "merge", "-q", "other")


CHANGES = {
    "clean": lambda top: None,
    "changed": change,
    "some lines": change_some_lines,
    "staged": stage,
    "staged and changed again": stage_and_change_again,
    "deleted": lambda top: (top / "program.py").unlink(),
    "deleted folder": delete_folder,
    "deletion staged": lambda top: git(top, "rm", "-q", "program.py"),
    "no longer tracked": lambda top: git(top, "rm", "-q", "--cached", "program.py"),
    "renamed": lambda top: (top / "program.py").rename(top / "sub" / "other.py"),
    "rename staged": lambda top: git(top, "mv", "program.py", "sub/other.py"),
    "binary": lambda top: write(top / "sub/data.bin", bytes(range(255, -1, -1)) * 9),
    "now binary": lambda top: write(top / "program.py", b"\0\1\2"),
    "not UTF-8": lambda top: write(top / "latin.txt", b"\xe9\xe8\n\xff\r\n"),
    "new files": new_files,
    "name that is not UTF-8": name_that_is_not_utf8,
    "to be added": lambda top: (new_files(top), git(top, "add", "-N", "new.py")),
    "executable": lambda top: (top / "program.py").chmod(0o755),
    "new executable": lambda top: (write(top / "a", b"x"), (top / "a").chmod(0o755)),
    "link": replace_by_link,
    "folder": replace_by_folder,
    "conflict": resolve_a_conflict,
    "ignored but staged": lambda top: (
        write(top / "kept.log", b"x"),
        git(top, "add", "-f", "kept.log"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rebuild(repository, name):
    CHANGES[name](repository)
    before = listing(repository)
    found = record(repository / "sub" / "library.py")
    assert listing(repository) == before  # neither files nor index nor object store
    commit = git(repository, "rev-parse", "HEAD")
    tree = found.record.pop("tree")
    changed = contents(repository).keys() | {""}
    assert {*found.record.pop("new")} <= changed
    assert {one for one in repository.rglob("*.py") if one.is_file()} <= found.files
    assert found.record == {
        "commit": commit,
        "branch": "trunk",
        "is_dirty": name not in ("clean", "no longer tracked"),
        "program": "sub/library.py",
        "submodules": {},
        "left_out": {},
        "is_complete": True,
    }
    assert bool(found.diff) == found.record["is_dirty"]
    assert rebuilt(repository, found) == contents(repository)
    # What is committed later has the same tree.
    if name not in ("no longer tracked", "ignored but staged"):
        git(repository, "add", "--all")
    git(repository, "commit", "-qm", "second", "--allow-empty")
    if name != "no longer tracked":
        assert git(repository, "rev-parse", "HEAD^{tree}") == tree
        later = record(repository / "program.py")
        assert later.record["tree"] == tree
        assert (later.diff, later.record["is_dirty"]) == ("", False)
        assert later.record["commit"] != commit


CONFIGURATION = """
[diff]
    noprefix = true
    mnemonicPrefix = true
    context = 0
    interHunkContext = 9
    external = false
    suppressBlankEmpty = true
    algorithm = patience
    renames = copies
    relative = true
[color]
    ui = always
[core]
    quotePath = false
    splitIndex = true
    untrackedCache = true
    pager = false
    excludesFile = /dev/null
[index]
    version = 4
[status]
    showUntrackedFiles = no
"""


def test_what_a_user_configures_does_not_matter(repository, tmp_path):
    stage_and_change_again(repository)
    git(repository, "reset", "-q")
    expected = record(repository / "program.py")
    (tmp_path / "gitconfig").write_text(CONFIGURATION)
    before = listing(repository)
    found = record(repository / "program.py")
    assert listing(repository) == before
    assert found.record == expected.record
    (tmp_path / "gitconfig").unlink()
    assert rebuilt(repository, found) == contents(repository)


def test_line_ends_that_git_would_refuse(repository, tmp_path):
    config = "[core]\n autocrlf = input\n safecrlf = true\n"
    (tmp_path / "gitconfig").write_text(config)
    write(repository / "new.txt", b"one\r\ntwo\n")
    found = record(repository / "program.py")
    assert found.record["is_complete"]
    assert "new.txt" in found.diff


def test_variables_of_another_repository_do_not_matter(
    repository, tmp_path, monkeypatch
):
    """As git sets them for its hooks."""
    change(repository)
    expected = record(repository / "program.py")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", ".git/next-index")
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "objects"))
    monkeypatch.setenv("GIT_PREFIX", "sub/")
    assert record(repository / "program.py") == expected


def test_objects_are_not_stored_again(repository):
    objects = repository / ".git" / "objects"
    for path in repository.rglob("*.*"):
        os.utime(path, (1e9, 1e9))  # git hashes what was changed in the last second
    change(repository)
    new_files(repository)
    before = {one: one.stat().st_mtime_ns for one in objects.rglob("*")}
    record(repository / "program.py")
    assert {one: one.stat().st_mtime_ns for one in objects.rglob("*")} == before


def test_ignored_files_are_left_out(repository):
    write(repository / "noise.log", b"x")
    write(repository / "runs" / "a" / "metrics.jsonl", b"{}")
    write(repository / "results" / ".gitignore", b"*\n")  # as a run folder has it
    write(repository / "results" / "big", b"x" * 2_000_000)
    found = record(repository / "program.py")
    assert found.record["is_complete"]
    assert found.record["left_out"] == {}
    assert not found.record["is_dirty"]
    assert found.diff == ""


SECRET_NAMES = (
    ".env",
    ".env.local",
    ".netrc",
    ".pypirc",
    "API_TOKEN",
    "aws_credentials.json",
    "deep/secrets/plain.txt",
    "hf_token.txt",
    "id_ed25519",
    "id_rsa.pub",
    "my_secret.yaml",
    "passwords.txt",
    "server.KEY",
    "server.pem",
)
CODE_NAMES = ("tokenizer.py", "token_counts.py", "id_mapping.py", "keys.py", "env.py")


def test_secrets_and_large_files_are_left_out_and_listed(repository):
    for name in SECRET_NAMES:
        write(repository / name, b"hunter2")
    for name in CODE_NAMES:
        write(repository / name, b"x = 1\n")
    write(repository / "large.bin", b"hunter2" * 150_000)
    write(repository / "almost.txt", b"x" * 1_000_000)
    (repository / "broken_link").symlink_to("nowhere")
    (repository / "to_folder").symlink_to("sub")
    git(repository, "init", "-q", "nested")
    write(repository / "nested" / "code.py", b"x = 1\n")
    git(repository, "add", ".env")  # a secret that is staged is one too
    found = record(repository / "program.py")
    left_out = [*SECRET_NAMES, "large.bin", "broken_link", "to_folder", "nested/"]
    assert [*found.record["left_out"]] == sorted(left_out)
    digest = hashlib.sha256(b"hunter2").hexdigest()
    for name in SECRET_NAMES:
        assert found.record["left_out"][name] == digest
    for name in ("broken_link", "to_folder", "nested/"):
        assert found.record["left_out"][name] is None
    assert found.record["is_dirty"]
    assert not found.record["is_complete"]
    assert "hunter2" not in found.diff
    others = rebuilt(repository, found)
    kept = contents(repository, [*left_out, "nested/code.py"])
    assert others == {k: v for k, v in kept.items() if "nested/" not in k}
    assert others.keys() >= {*CODE_NAMES, "almost.txt"}
    json.dumps(found.record)


# What the finding wrote into a repository, and what somebody may have lying about.
PRIVATE_NAMES = (
    "kaggle.json",
    "service-account.json",
    "apikey.txt",
    ".npmrc",
    ".Renviron",
    "settings.json",
    "key.txt",
    ".aws/config",
    ".ssh/config",
    "notes.md",
    "old_experiment.py",
)


def test_new_files_are_recorded_only_if_they_are_used(repository):
    """An allow-list: nobody asked for the others to be in a record that is sent."""
    for name in PRIVATE_NAMES:
        write(repository / name, b"hunter2")
    write(repository / "helper.py", b"x = 1\n")
    write(repository / "staged.yaml", b"x: 1\n")
    git(repository, "add", "staged.yaml")
    before = listing(repository)
    found = source.record(repository / "program.py", {repository / "helper.py"})
    assert listing(repository) == before
    assert found.record["new"] == ["helper.py", "staged.yaml"]
    digest = hashlib.sha256(b"hunter2").hexdigest()
    assert found.record["left_out"] == dict.fromkeys(sorted(PRIVATE_NAMES), digest)
    assert not found.record["is_complete"]
    assert "hunter2" not in found.diff
    assert rebuilt(repository, found) == contents(repository, PRIVATE_NAMES)


def test_files_left_out_are_hashed_up_to_a_limit(repository, monkeypatch):
    monkeypatch.setattr(source, "_HASHED", 1000)
    for name in ("a", "b", "c"):
        write(repository / name, b"x" * 400)
    left_out = source.record(repository / "program.py").record["left_out"]
    digest = hashlib.sha256(b"x" * 400).hexdigest()
    assert left_out == {"a": digest, "b": digest, "c": None}  # unknown, not equal


def test_changes_in_submodules_are_recorded(repository, tmp_path):
    other = tmp_path / "other"
    inner = tmp_path / "inner"
    for top in (inner, other):
        git(tmp_path, "init", "-q", "-b", "trunk", top.name)
        write(top / "code.py", b"rate = 1\n")
        git(top, "add", ".")
        git(top, "commit", "-qm", "first")
    allowed = ("-c", "protocol.file.allow=always")
    git(other, *allowed, "submodule", "add", "-q", str(inner), "deep")
    git(other, "commit", "-qm", "deep")
    git(repository, *allowed, "submodule", "add", "-q", str(other), "sub module")
    update = (*allowed, "submodule", "update", "-q", "--init", "--recursive")
    git(repository, *update)
    git(repository, "commit", "-qam", "submodule")
    clean = source.record(repository / "program.py")
    assert clean.record["is_complete"]
    assert not clean.record["is_dirty"]
    assert [*clean.record["submodules"]] == ["sub module", "sub module/deep"]
    deep = repository / "sub module" / "deep"
    assert {deep / "code.py", deep.parent / "code.py"} <= clean.files

    write(deep / "code.py", b"rate = 2\n")
    write(deep / "new.py", b"x = 1\n")
    write(deep / "note", b"hunter2\n")
    found = source.record(repository / "program.py", {deep / "new.py"})
    assert found.record["tree"] == clean.record["tree"]  # git sees no difference
    assert found.record["submodules"] != clean.record["submodules"]
    assert found.record["submodules"]["sub module/deep"]["is_dirty"]
    assert found.record["is_dirty"]
    assert found.record["new"] == ["sub module/deep/new.py"]
    assert [*found.record["left_out"]] == ["sub module/deep/note"]
    (deep / "note").unlink()
    # As the docstring of `source` says.
    clone, patch = tmp_path / "clone", tmp_path / "diff.patch"
    options = ("clone", "-q", "--recurse-submodules")
    git(tmp_path, *allowed, *options, str(repository), "clone")
    patch.write_text(found.diff)
    git(clone, "apply", str(patch))
    for name in ("code.py", "new.py"):
        copy = clone / "sub module" / "deep" / name
        assert copy.read_bytes() == (deep / name).read_bytes()


def test_a_submodule_that_git_cannot_read(repository, tmp_path):
    git(tmp_path, "init", "-q", "-b", "trunk", "inner")
    write(tmp_path / "inner" / "code.py", b"x = 1\n")
    git(tmp_path / "inner", "add", ".")
    git(tmp_path / "inner", "commit", "-qm", "first")
    allowed = ("-c", "protocol.file.allow=always")
    url = str(tmp_path / "inner")
    git(repository, *allowed, "submodule", "add", "-q", url, "inner")
    git(repository, "commit", "-qm", "inner")
    (repository / "inner" / ".git").write_text("gitdir: nowhere\n")
    found = source.record(repository / "program.py")
    assert found.record["tree"] is None  # unknown, not equal
    assert found.record["reason"].startswith("git add: ")
    assert not found.record["is_complete"]


def test_a_diff_that_is_too_large(repository, monkeypatch):
    monkeypatch.setattr(source, "_LIMIT", 1000)
    write(repository / "new.txt", b"x" * 500)
    assert record(repository).record["is_complete"]
    small = record(repository).record["tree"]
    write(repository / "new.txt", b"y" * 1000)
    found = record(repository)
    assert found.diff == ""
    assert found.record["is_dirty"]
    assert not found.record["is_complete"]
    assert found.record["tree"] != small


def test_any_change_is_another_tree(repository):
    trees = set()
    for number, step in enumerate(
        (
            lambda: None,
            lambda: write(repository / "program.py", b"x"),
            lambda: (repository / "program.py").chmod(0o755),
            lambda: write(repository / "a.py", b""),
            lambda: (repository / "a.py").rename(repository / "b.py"),
            lambda: (
                (repository / "b.py").unlink() or (repository / "crlf.txt").unlink()
            ),
        ),
        start=1,
    ):
        step()
        trees.add(record(repository / "program.py").record["tree"])
        assert len(trees) == number


def test_detached_head_and_work_tree(repository, tmp_path):
    git(repository, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    tree = tmp_path / "tree"
    write(tree / "new.py", b"x = 1\n")
    before = listing(repository)
    found = record(tree / "program.py")
    assert listing(repository) == before
    assert asked.repository(tree / "sub") == tree
    assert found.record["branch"] == "HEAD"
    assert found.record["is_dirty"]
    assert rebuilt(repository, found) == contents(tree, [".git"])


def test_a_clone_that_shares_its_objects(repository, tmp_path):
    git(tmp_path, "clone", "-q", "--shared", str(repository), "shared: clone")
    clone = tmp_path / "shared: clone"
    change(clone)
    found = record(clone / "program.py")
    assert rebuilt(repository, found) == contents(clone)


def test_program_through_a_link(repository, tmp_path):
    (tmp_path / "link.py").symlink_to(repository / "sub" / "library.py")
    assert record(tmp_path / "link.py").record["program"] == "sub/library.py"
    assert asked.repository(tmp_path / "link.py") == repository


def test_program_that_is_not_there(repository, monkeypatch):
    # A notebook, or `python -c`.
    monkeypatch.chdir(repository / "sub")
    assert record("-c").record["program"] == "sub/-c"
    assert record("").record["program"] == "sub"


NOTHING = {"commit": None, "is_complete": False}


def test_no_repository(tmp_path):
    write(tmp_path / "program.py", b"")
    found = record(tmp_path / "program.py")
    assert found.record.pop("reason").startswith("no git repository (git rev-parse: ")
    assert found == (NOTHING, "", frozenset())
    assert asked.repository(tmp_path / "program.py") is None
    assert record(tmp_path / "none" / "x.py").record["commit"] is None


def test_repository_without_commit(tmp_path):
    git(tmp_path, "init", "-q", "new")
    write(tmp_path / "new" / "program.py", b"")
    found = record(tmp_path / "new" / "program.py")
    assert found == ({**NOTHING, "reason": "new has no commit"}, "", frozenset())


def test_no_git(repository, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = record(repository / "program.py")
    reason = found.record.pop("reason")
    assert reason.startswith("no git repository (git rev-parse: ")
    assert "No such file or directory: 'git'" in reason
    assert found == (NOTHING, "", frozenset())


def test_a_damaged_repository_stops_nothing(repository):
    tree = git(repository, "rev-parse", "HEAD^{tree}")
    (repository / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    found = record(repository / "program.py")
    assert "git " in found.record.pop("reason")
    assert found.diff == ""
    assert found.record == {
        "commit": git(repository, "rev-parse", "HEAD"),
        "branch": "trunk",
        "is_dirty": True,
        "tree": None,
        "submodules": {},
        "new": [],
        "program": "program.py",
        "left_out": {},
        "is_complete": False,
    }


def test_this_repository():
    top = Path(source.__file__).parents[2]
    if not (top / ".git").exists():
        pytest.skip("not from a repository")
    assert asked.repository(__file__) == top
