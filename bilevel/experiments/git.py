"""Git, asked about a repository without a change to it."""

import os
import subprocess
from pathlib import Path

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


class GitError(RuntimeError):
    """A call of git failed."""


def repository(path: str | os.PathLike[str]) -> Path | None:
    """Returns the top of the git repository that a file or folder is in, or None."""
    try:
        return top(Path(path).resolve())
    except GitError:
        return None


def head(top: Path) -> str:
    """Returns the commit of a repository, 'none' where there is none."""
    try:
        return run(top, "rev-parse", "--verify", "HEAD").strip()
    except GitError:
        return "none"


def is_tracked(top: Path, path: Path) -> bool:
    """Says whether git knows a file of a repository."""
    name = path.relative_to(top).as_posix()
    return name in names(run(top, "ls-files", "-z", "--cached"))


def tracked_name(top: Path, text: str) -> str | None:
    """Returns the name of a file that git knows with this content, None without one."""
    digest = run(top, "hash-object", "--stdin", stdin=text).strip()
    for entry in sorted(names(run(top, "ls-files", "-z", "--stage"))):
        about, _, name = entry.partition("\t")
        if about.split()[1] == digest:
            return name
    return None


def top(path: Path) -> Path:
    """Returns the top of the repository that a file or folder is in.

    Raises:
      GitError: it is in none, or there is no git.
    """
    folder = next(one for one in (path, *path.parents) if one.is_dir())
    return Path(run(folder, "rev-parse", "--show-toplevel").removesuffix("\n"))


def names(output: str) -> set[str]:
    """Returns the names in the output of a command with `-z`."""
    return {one for one in output.split("\0") if one}


def run(
    folder: Path,
    *arguments: str,
    variables: dict[str, str] | None = None,
    stdin: str = "",
) -> str:
    """Calls git; returns what it prints.

    Args:
      folder: where it is called.
      arguments: the command.
      variables: added to the environment.
      stdin: its input.

    Raises:
      GitError: it failed, or there is none.
    """
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
