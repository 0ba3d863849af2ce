"""The code of a run: commit and diff, from which the exact source can be rebuilt.

    git clone ... && git checkout <commit> && git apply diff.patch

The diff holds what is not committed, new files too (ignored ones are left out, and so
are new files whose names look like secrets or that are too large; they are listed).
"""

import fnmatch
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

_SECRET_NAMES = (
    ".env*",
    "*.pem",
    "*.key",
    "id_*",
    ".netrc",
    ".pypirc",
    "*credential*",
    "*secret*",
    "*token*",
)
_LARGEST = 1_000_000  # bytes of a new file in a diff
_LIMIT = 20_000_000  # bytes of a diff

_NO_GIT = "no git repository"


class Source(NamedTuple):
    """The code of a run.

    Attributes:
      record: JSON: `commit`, `branch`, `is_dirty`, `program` (relative to the top of
        the repository), `tree` (git's name for the content of all files, committed or
        not: equal code, equal tree), `left_out` (files that are not in the diff),
        `is_complete` (whether commit and diff are all of the source). Outside of a
        repository `commit` is None and `reason` says why.
      diff: the patch from the commit to the code that ran.
    """

    record: dict[str, Any]
    diff: str


def repository(path: str | os.PathLike[str]) -> Path | None:
    """Returns the top of the git repository that a file or folder is in, or None."""
    folder = Path(path).resolve()
    folder = folder if folder.is_dir() else folder.parent
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel").strip())
    except GitError:
        return None


def record(program: str | os.PathLike[str]) -> Source:
    """Records the state of the repository that a program is in.

    Cost: nine calls of git, some 50 ms; the repository is not changed, its index and
    object store included.

    Args:
      program: the file of the program.

    Returns:
      `Source`; nothing is raised where there is no git or no repository.
    """
    path = Path(program).resolve()
    top = repository(path)
    if top is None:
        return Source({"commit": None, "is_complete": False, "reason": _NO_GIT}, "")
    try:
        commit = _git(top, "rev-parse", "HEAD").strip()
    except GitError:
        reason = f"{top.name} has no commit"
        return Source({"commit": None, "is_complete": False, "reason": reason}, "")
    new = [one for one in _git_names(top, "ls-files", "--others") if one]
    left_out = sorted(one for one in new if _is_left_out(top, one))
    tree, diff = _snapshot(top, [one for one in new if one not in left_out])
    is_too_large = len(diff) > _LIMIT
    return Source(
        {
            "commit": commit,
            "branch": _git(top, "rev-parse", "--abbrev-ref", "HEAD").strip(),
            "is_dirty": bool(diff or left_out),
            "tree": tree,
            "program": path.relative_to(top).as_posix(),
            "left_out": left_out,
            "is_complete": not left_out and not is_too_large,
        },
        "" if is_too_large else diff,
    )


class GitError(RuntimeError):
    """A call of git failed."""


def _snapshot(top: Path, new: list[str]) -> tuple[str, str]:
    """Returns tree and patch from HEAD of the files as they are, new ones too."""
    # In an index and an object store of its own: a record must not change what it
    # records, nor collide with another git.
    with tempfile.TemporaryDirectory() as scratch:
        store = _git(top, "rev-parse", "--git-path", "objects").strip()
        variables = {
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((top / store).resolve()),
        }
        _git(top, "read-tree", "HEAD", variables=variables)
        _git(top, "add", "--update", ".", variables=variables)
        if new:
            names = "\0".join(new)
            options = ("--pathspec-from-file=-", "--pathspec-file-nul")
            _git(top, "add", *options, variables=variables, stdin=names)
        # Not what the user's configuration makes of it: colours, prefixes, tools.
        options = ("--no-color", "--no-ext-diff", "--no-textconv", "--full-index")
        prefixes = ("--src-prefix=a/", "--dst-prefix=b/")
        arguments = ("diff", "--cached", "--binary", *options, *prefixes, "HEAD")
        diff = _git(top, *arguments, variables=variables)
        return _git(top, "write-tree", variables=variables).strip(), diff


def _is_left_out(top: Path, name: str) -> bool:
    path = top / name
    is_secret = any(
        fnmatch.fnmatch(path.name.lower(), pattern) for pattern in _SECRET_NAMES
    )
    return is_secret or not path.is_file() or path.stat().st_size > _LARGEST


def _git_names(top: Path, *arguments: str) -> list[str]:
    return _git(top, *arguments, "--exclude-standard", "-z").split("\0")


def _git(
    folder: Path,
    *arguments: str,
    variables: dict[str, str] | None = None,
    stdin: str = "",
) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **(variables or {}), "GIT_OPTIONAL_LOCKS": "0"},
            input=stdin.encode(),
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        stderr = getattr(error, "stderr", b"") or b""
        message = stderr.decode(errors="replace").strip() or str(error)
        raise GitError(f"git {arguments[0]}: {message}") from error
    # A patch holds the bytes of the files, whatever their encoding.
    return done.stdout.decode(errors="surrogateescape")
