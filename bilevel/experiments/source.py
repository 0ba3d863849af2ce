"""The code of a run: commit and diff, from which the exact source can be rebuilt.

    git clone --recurse-submodules ... && git checkout --recurse-submodules <commit>
    git apply diff.patch

The diff holds what is not committed, in submodules too. Of new files it holds those
that are staged and those that the program uses (see `modules`). The others are listed
with their SHA-256, for nobody asked for them to be in a record that may be sent; so are
files whose names look like secrets, and files that are too large. What is ignored is
not looked at.
"""

import fnmatch
import functools
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.datasets import manifest
from bilevel.experiments import git

# Of a new file, or of a folder that it is in. Not `*token*`: tokenizer.py is code.
_SECRET_NAMES = (
    ".env*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    ".pypirc",
    "*credential*",
    "*password*",
    "*secret*",
    "*token",
    "*token.*",
    "*tokens",
    "*tokens.*",
)
_LARGEST = 1_000_000  # bytes of a new file in a diff
_LIMIT = 20_000_000  # bytes of a diff
_HASHED = 500_000_000  # bytes of files that are left out, in all; a second

_PATCH = (
    *("--cached", "--binary", "--full-index", "--find-renames", "--unified=3"),
    *("--no-color", "--no-ext-diff", "--no-textconv", "--submodule=short"),
)


class Source(NamedTuple):
    """The code of a run.

    Attributes:
      record: JSON: `commit`, `branch`, `is_dirty`, `program` (relative to the top of
        the repository), `tree` (git's name for the content of all files, committed or
        not: equal code, equal tree), `submodules` (commit, tree and `is_dirty` of each
        by path), `new` (files of the diff that are in no commit), `left_out` (SHA-256
        of files that are not in the diff, by name; None: not known), `is_complete`
        (whether commit and diff are all of the source). Outside of a repository
        `commit` is None, and where git fails `tree` is None; `reason` says why.
      diff: the patch from the commit to the code that ran.
      files: those of the tree.
    """

    record: dict[str, Any]
    diff: str
    files: frozenset[Path] = frozenset()


def record(program: str | os.PathLike[str], used: Collection[Path] = ()) -> Source:
    """Records the state of the repository that a program is in.

    Cost: a dozen calls of git, some 100 ms, and a hash of every file; the repository is
    not changed, its index and object store included (what is staged may be marked there
    as recently used).

    Args:
      program: the file of the program.
      used: files that the program uses; of files that are new to git, only these are in
        the diff.

    Returns:
      `Source`; nothing is raised where there is no git or no repository, or git fails.
    """
    path = Path(program).resolve()
    try:
        top = git.top(path)
    except git.GitError as error:
        return _no_source(f"no git repository ({error})")
    try:
        commit = git.run(top, "rev-parse", "--verify", "HEAD").strip()
        branch = git.run(top, "rev-parse", "--abbrev-ref", "HEAD").strip()
    except git.GitError:
        return _no_source(f"{top.name} has no commit")
    found = {"commit": commit, "branch": branch}
    found["program"] = path.relative_to(top).as_posix()
    try:
        now = _snapshot(top, frozenset(used))
    except (git.GitError, OSError) as error:
        unknown = {"is_dirty": True, "tree": None, "submodules": {}, "new": []}
        unknown |= {"left_out": {}, "is_complete": False}
        return Source({**found, **unknown, "reason": str(error)}, "")
    is_too_large = len(now.diff) > _LIMIT
    known = {
        "is_dirty": bool(now.diff or now.left_out),
        "tree": now.tree,
        "submodules": now.submodules,
        "new": now.new,
        "left_out": _digests(top, now.left_out),
        "is_complete": not now.left_out and not is_too_large,
    }
    if is_too_large:
        known["reason"] = "the changes are larger than a record may be"
    return Source({**found, **known}, "" if is_too_large else now.diff, now.files)


def _no_source(reason: str) -> Source:
    return Source({"commit": None, "is_complete": False, "reason": reason}, "")


class _Snapshot(NamedTuple):
    """The files of a repository as they are.

    Attributes:
      tree, diff, submodules, new, files: as in `Source`.
      left_out: the new files that are in neither tree nor diff.
    """

    tree: str
    diff: str
    submodules: dict[str, Any]
    new: list[str]
    left_out: list[str]
    files: frozenset[Path]


def _snapshot(top: Path, used: frozenset[Path], prefix: str = "") -> _Snapshot:
    """Compares the files as they are, new ones too, with HEAD.

    Args:
      top: of the repository.
      used: files that are used.
      prefix: of the paths in the diff, `sub/` in a submodule.
    """
    # In an index and an object store of its own: a record must not change what it
    # records, nor collide with another git.
    with tempfile.TemporaryDirectory() as scratch:
        store = git.run(top, "rev-parse", "--git-path", "objects").removesuffix("\n")
        variables = {
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
            "GIT_OBJECT_DIRECTORY": scratch,
            # Quoted, for a colon would end it.
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted(str((top / store).resolve())),
            "GIT_LITERAL_PATHSPECS": "1",
        }
        call = functools.partial(git.run, top, variables=variables)
        # By the user's index: what is staged is new, too, even if it is ignored.
        staged = git.names(git.run(top, "ls-files", "-z", "--cached"))
        options = ("-z", "--others", "--exclude-standard")
        untracked = git.names(git.run(top, "ls-files", *options))
        committed = git.names(git.run(top, "ls-tree", "-rz", "--name-only", "HEAD"))
        new = {
            one
            for one in (staged | untracked) - committed
            if os.path.lexists(top / one)
        }
        left_out = {
            one
            for one in new
            if _is_left_out(top, one)
            or (one not in staged and (top / one).resolve() not in used)
        }
        call("read-tree", "HEAD")
        # So that files that are as they were are not stored once more.
        call("update-index", "-q", "--refresh")
        call("add", "--update", ".")
        if added := sorted(new - left_out):
            options = ("--pathspec-from-file=-", "--pathspec-file-nul")
            call("add", "--force", *options, stdin="\0".join(added))
        # diff-index heeds less of a user's configuration than diff.
        prefixes = (f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}")
        diff = call("diff-index", "--patch", *_PATCH, *prefixes, "HEAD")
        tree = call("write-tree").strip()
        entries = git.names(call("ls-files", "-z", "--stage"))
    parted = [one.partition("\t") for one in entries]
    names = {name: head.split()[0] for head, _, name in parted}
    own = _Snapshot(
        tree,
        diff,
        {},
        [f"{prefix}{one}" for one in added],
        [f"{prefix}{one}" for one in sorted(left_out)],
        frozenset(top / one for one, mode in names.items() if mode != _SUBMODULE),
    )
    return functools.reduce(
        functools.partial(_with_submodule, top, used, prefix),
        sorted(name for name, mode in names.items() if mode == _SUBMODULE),
        own,
    )


_SUBMODULE = "160000"  # the mode of its entry in an index


def _with_submodule(
    top: Path, used: frozenset[Path], prefix: str, one: _Snapshot, name: str
) -> _Snapshot:
    """Adds the files of a submodule, which may have changes of its own."""
    folder, path = top / name, f"{prefix}{name}"
    if not (folder / ".git").exists():  # it was never checked out
        return one
    try:
        commit = git.run(folder, "rev-parse", "--verify", "HEAD").strip()
        inner = _snapshot(folder, used, f"{path}/")
    except (git.GitError, OSError):
        return one._replace(left_out=[*one.left_out, f"{path}/"])
    is_dirty = bool(inner.diff or inner.left_out)
    known = {"commit": commit, "tree": inner.tree, "is_dirty": is_dirty}
    return _Snapshot(
        one.tree,
        one.diff + inner.diff,
        {**one.submodules, path: known, **inner.submodules},
        one.new + inner.new,
        one.left_out + inner.left_out,
        one.files | inner.files,
    )


def _digests(top: Path, names: Collection[str]) -> dict[str, str | None]:
    """Returns the SHA-256 of files, None of what is none or beyond the limit."""
    found: dict[str, str | None] = {}
    rest = _HASHED
    for name in names:
        path = top / name
        try:
            is_file = path.is_file() and not path.is_symlink()
            rest -= path.stat().st_size if is_file else 0
            known = is_file and rest >= 0
            found[name] = manifest.file_sha256(path) if known else None
        except OSError:
            found[name] = None
    return found


def _is_left_out(top: Path, name: str) -> bool:
    path = top / name
    is_secret = any(
        fnmatch.fnmatch(part.lower(), pattern)
        for part in Path(name).parts
        for pattern in _SECRET_NAMES
    )
    return is_secret or not path.is_file() or path.stat().st_size > _LARGEST


def _quoted(path: str) -> str:
    escaped = path.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'
