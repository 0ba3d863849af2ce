"""The code of a run: commit and diff, from which the exact source can be rebuilt.

    git clone ... && git checkout <commit> && git apply diff.patch

The diff holds what is not committed, new files too (ignored ones are left out, and so
are new files whose names look like secrets or that are too large; they are listed).
"""

import fnmatch
import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

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

# Which repository it is, is asked of the program's folder. Git sets these for hooks.
_LOCAL_VARIABLES = (
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_PREFIX",
)
# Of a user's configuration: what would write to the repository, or refuse a file.
_CONFIGURATION = (
    *("-c", "core.splitIndex=false", "-c", "core.fsmonitor=false"),
    *("-c", "core.safecrlf=false"),
)

_PATCH = (
    *("--cached", "--binary", "--full-index", "--find-renames", "--unified=3"),
    *("--no-color", "--no-ext-diff", "--no-textconv", "--submodule=short"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)


class Source(NamedTuple):
    """The code of a run.

    Attributes:
      record: JSON: `commit`, `branch`, `is_dirty`, `program` (relative to the top of
        the repository), `tree` (git's name for the content of all files, committed or
        not: equal code, equal tree), `left_out` (files that are not in the diff),
        `is_complete` (whether commit and diff are all of the source). Outside of a
        repository `commit` is None, and where git fails `tree` is None; `reason` says
        why.
      diff: the patch from the commit to the code that ran.
    """

    record: dict[str, Any]
    diff: str


def repository(path: str | os.PathLike[str]) -> Path | None:
    """Returns the top of the git repository that a file or folder is in, or None."""
    try:
        return _top(Path(path).resolve())
    except GitError:
        return None


def record(program: str | os.PathLike[str]) -> Source:
    """Records the state of the repository that a program is in.

    Cost: a dozen calls of git, some 100 ms, and a hash of every file; the repository is
    not changed, its index and object store included (what is staged may be marked there
    as recently used).

    Args:
      program: the file of the program.

    Returns:
      `Source`; nothing is raised where there is no git or no repository, or git fails.
    """
    path = Path(program).resolve()
    try:
        top = _top(path)
    except GitError as error:
        return _no_source(f"no git repository ({error})")
    try:
        commit = _git(top, "rev-parse", "--verify", "HEAD").strip()
        branch = _git(top, "rev-parse", "--abbrev-ref", "HEAD").strip()
    except GitError:
        return _no_source(f"{top.name} has no commit")
    found = {"commit": commit, "branch": branch}
    found["program"] = path.relative_to(top).as_posix()
    try:
        tree, diff, left_out = _snapshot(top)
    except (GitError, OSError) as error:
        unknown = {"is_dirty": True, "tree": None, "left_out": [], "is_complete": False}
        return Source({**found, **unknown, "reason": str(error)}, "")
    is_too_large = len(diff) > _LIMIT
    known = {
        "is_dirty": bool(diff or left_out),
        "tree": tree,
        "left_out": left_out,
        "is_complete": not left_out and not is_too_large,
    }
    return Source({**found, **known}, "" if is_too_large else diff)


class GitError(RuntimeError):
    """A call of git failed."""


def _no_source(reason: str) -> Source:
    return Source({"commit": None, "is_complete": False, "reason": reason}, "")


def _top(path: Path) -> Path:
    folder = next(one for one in (path, *path.parents) if one.is_dir())
    return Path(_git(folder, "rev-parse", "--show-toplevel").removesuffix("\n"))


def _snapshot(top: Path) -> tuple[str, str, list[str]]:
    """Compares the files as they are, new ones too, with HEAD.

    Returns:
      Tree, patch, and the new files that are in neither.
    """
    # In an index and an object store of its own: a record must not change what it
    # records, nor collide with another git.
    with tempfile.TemporaryDirectory() as scratch:
        store = _git(top, "rev-parse", "--git-path", "objects").removesuffix("\n")
        variables = {
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
            "GIT_OBJECT_DIRECTORY": scratch,
            # Quoted, for a colon would end it.
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted(str((top / store).resolve())),
            "GIT_LITERAL_PATHSPECS": "1",
        }
        git = functools.partial(_git, top, variables=variables)
        # By the user's index: what is staged is new, too, even if it is ignored.
        options = ("-z", "--cached", "--others", "--exclude-standard")
        listed = set(_git(top, "ls-files", *options).split("\0"))
        committed = _git(top, "ls-tree", "-rz", "--name-only", "HEAD").split("\0")
        new = {
            one for one in listed.difference(committed) if os.path.lexists(top / one)
        }
        left_out = {one for one in new if _is_left_out(top, one)}
        git("read-tree", "HEAD")
        # So that files that are as they were are not stored once more.
        git("update-index", "-q", "--refresh")
        git("add", "--update", ".")
        if added := sorted(new - left_out):
            options = ("--pathspec-from-file=-", "--pathspec-file-nul")
            git("add", "--force", *options, stdin="\0".join(added))
        # diff-index heeds less of a user's configuration than diff.
        diff = git("diff-index", "--patch", *_PATCH, "HEAD")
        return git("write-tree").strip(), diff, sorted(left_out)


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


def _git(
    folder: Path,
    *arguments: str,
    variables: dict[str, str] | None = None,
    stdin: str = "",
) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in _LOCAL_VARIABLES}
    try:
        done = subprocess.run(
            ["git", *_CONFIGURATION, *arguments],
            cwd=folder,
            env={**inherited, **(variables or {}), "GIT_OPTIONAL_LOCKS": "0"},
            input=os.fsencode(stdin),
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        stderr = getattr(error, "stderr", b"") or b""
        message = stderr.decode(errors="replace").strip() or str(error)
        raise GitError(f"git {arguments[0]}: {message}") from error
    # A patch holds the bytes of the files, whatever their encoding.
    return done.stdout.decode(errors="surrogateescape")
