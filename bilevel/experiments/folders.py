"""Who may use a folder: new folders, one configuration a folder, one process at a time.

config.json     the configuration, its digest, the class that checks it
config.py.txt   the text of the configuration file
.gitignore      so that results are no part of the source that a run records
.lock           held by the process that writes
.owner          its number, while it does
"""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import filelock

from bilevel.datasets import files
from bilevel.datasets.files import StrPath
from bilevel.experiments import config, printable

Status: TypeAlias = Literal["new", "unfinished", "finished"]

CONFIG, SOURCE, SUMMARY = "config.json", "config.py.txt", "summary.json"
METRICS, DIGESTS, DATA = "metrics.jsonl", "digests.jsonl", "data.json"
CHECKPOINTS = "ckpt"
IGNORE, LOCK, OWNER = ".gitignore", ".lock", ".owner"
_FORMAT = 1


class FolderError(ValueError):
    """A folder cannot be used for this run; the message says what to do."""


def local(path: StrPath) -> Path:
    """Returns a folder with `~` expanded.

    Raises:
      FolderError: it is the address of a remote one.
    """
    try:
        return files.local(path)
    except ValueError as error:
        raise FolderError(str(error)) from error


def new_directory(name: str, parent: StrPath = "runs") -> Path:
    """Makes the folder `<parent>/<name>-<time>[-n]` and returns it.

    Two processes that start in the same second get two folders.

    Raises:
      FolderError: the folder cannot be made, or is a remote one.
    """
    parent = local(parent)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    count = 1
    with folder_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            directory = parent / f"{name}-{now}{'' if count == 1 else f'-{count}'}"
            try:
                directory.mkdir()
            except FileExistsError:
                count += 1
            else:
                return directory


def claim(directory: StrPath, cfg: Any, *, source: str = "") -> Status:
    """Takes a folder for a run with this configuration.

    Args:
      directory: made if it is not there.
      cfg: the configuration.
      source: the text of the configuration file, kept as config.py.txt.

    Returns:
      'new', 'unfinished' (to be resumed) or 'finished'.

    Raises:
      FolderError: the folder holds a run with another configuration (the message lists
        the differences), or something that is no run, or cannot be written to, or is a
        remote one.
    """
    directory = local(directory)
    require_plain(directory)
    if directory.exists() and not directory.is_dir():
        raise FolderError(f"{directory} is a file; give another --workdir")
    record = directory / CONFIG
    if record.exists():
        _check_same(directory, read_config(directory), cfg)
        return "finished" if is_finished(directory) else "unfinished"
    # What a killed `claim` leaves behind is no obstacle.
    names = [one.name for one in directory.iterdir()] if directory.exists() else []
    if any(name != SOURCE and not name.startswith(".") for name in names):
        raise FolderError(
            f"{directory} holds files but no run (no {CONFIG}); give another --workdir"
        )
    content = {
        "format_version": _FORMAT,
        "config": config.to_dict(cfg),
        "config_digest": config.digest(cfg),
        "config_class": f"{type(cfg).__module__}.{type(cfg).__qualname__}",
    }
    with folder_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with locked(directory), folder_errors(directory):
        if record.exists():  # another process was quicker
            return claim(directory, cfg, source=source)
        (directory / IGNORE).write_text("*\n")
        files.replace_text(directory / SOURCE, source)
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        files.replace_text(record, text)
    return "new"


def require_plain(directory: Path) -> None:
    """Refuses a folder that has us read or write elsewhere, or wait.

    A folder that was received may hold a link in place of a file that we append to. The
    checkpoints may be elsewhere, on a larger disk, but not in another run.

    Cost: a look at every entry.

    Raises:
      FolderError: something in it is a link out of the folder, or neither file, folder
        nor link; all of them are named.
    """
    top = directory.resolve()
    checkpoints = top / CHECKPOINTS
    is_elsewhere = checkpoints.is_symlink() and checkpoints.is_dir()
    target = checkpoints.resolve()
    is_elsewhere = is_elsewhere and not (target.parent / CONFIG).exists()
    wrong = _leading_elsewhere(top, {checkpoints} if is_elsewhere else set())
    wrong += _leading_elsewhere(target, set()) if is_elsewhere else []
    if wrong:
        lines = "\n  ".join(map(printable.line, wrong))
        raise FolderError(
            f"{directory} is not used, for it leads elsewhere:\n  {lines}\nIf somebody"
            " sent it, ask why. If you made the links to have more space, put the whole"
            " folder there and give that, or a link to that"
        )


def _leading_elsewhere(top: Path, allowed: Collection[Path]) -> list[str]:
    """Lists the links out of a folder, and what is neither file nor folder."""
    wrong = []
    for folder, _, _ in os.walk(top):
        with os.scandir(folder) as entries:
            for one in entries:
                if one.is_symlink():
                    target = Path(one.path).resolve()
                    if not target.is_relative_to(top) and Path(one.path) not in allowed:
                        wrong.append(f"{one.path} is a link to {target}")
                elif not (one.is_file() or one.is_dir()):
                    wrong.append(f"{one.path} is neither a file nor a folder")
    return wrong


def is_finished(directory: Path) -> bool:
    """Says whether the run in a folder reached its end."""
    return (directory / SUMMARY).exists()


def read_config(directory: Path) -> dict[str, Any]:
    """Returns the configuration of a run as nested dictionaries.

    Raises:
      FolderError: there is none, or it was changed by hand.
    """
    path = directory / CONFIG
    try:
        content = json.loads(path.read_text())
        stored = content["config"]
        is_whole = config.dict_digest(stored) == content["config_digest"]
        if not isinstance(stored, dict):
            raise TypeError(f"its configuration is a {type(stored).__name__}")
    except FileNotFoundError:
        raise FolderError(f"{directory} is no run: it has no {CONFIG}") from None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise FolderError(f"{path} is damaged ({error})") from error
    if not is_whole:
        raise FolderError(f"{path} was changed: its values do not have its digest")
    return stored


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[Callable[[], bool]]:
    """Holds a folder; a killed process lets go of it.

    Yields:
      A function that says whether the folder is still there, and the same one.

    Raises:
      FolderError: another process holds it, or it cannot be written to.
    """
    path, owner = directory / LOCK, directory / OWNER
    # Of the process, not of a thread: whoever closes the run lets go.
    lock = filelock.FileLock(path, thread_local=False)
    with folder_errors(directory):
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise FolderError(
                f"process {_text(owner) or 'unknown'} is writing to {directory}; wait"
                " for it, or give another --workdir"
            ) from None
    try:
        with folder_errors(directory):
            # In a file of its own: a process that tries may empty the locked one.
            files.replace_text(owner, f"{os.getpid()}\n")
            held = path.stat()
        yield lambda: _is_file(path, held)
    finally:
        with contextlib.suppress(OSError):  # the folder is gone, or read-only now
            owner.unlink(missing_ok=True)
        lock.release()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _is_file(path: Path, held: os.stat_result) -> bool:
    """Says whether a path still leads to the same file."""
    try:
        return os.path.samestat(path.stat(), held)
    except OSError:
        return False


@contextlib.contextmanager
def folder_errors(directory: Path) -> Iterator[None]:
    """Turns what the disk refuses into one message that says what is not lost."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if not directory.is_dir():
            reason = f"it is gone or cannot be made ({reason})"
        raise FolderError(
            f"cannot write to {directory}: {reason}; what was written before is whole."
            " Mend that and run the same command, or give another --workdir"
        ) from error


class Folder(NamedTuple):
    """A folder that this process holds; its functions raise `FolderError`.

    A folder that was deleted meanwhile is not written to: another run may have taken
    its name.

    Attributes:
      path: of the folder.
      is_held: says whether it is still there, and the same one (see `locked`).
    """

    path: Path
    is_held: Callable[[], bool]

    def require(self) -> None:
        """Raises if the folder was deleted."""
        if not self.is_held():
            raise FolderError(
                f"{self.path} was deleted, or replaced, while the run was writing to"
                " it; the run stops here. Start it again in another folder, and delete"
                " no folder of a run that is going on"
            )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Says that the folder was deleted, or what else the disk refuses."""
        self.require()
        with folder_errors(self.path):
            yield

    def replace(self, name: str, text: str) -> None:
        """Writes a file in one step, as `files.replace` does."""
        with self.errors():
            files.replace_text(self.path / name, text)

    def append(self, name: str, text: str) -> None:
        """Appends lines, as `files.append` does."""
        with self.errors():
            files.append(self.path / name, text)

    def sync(self, *names: str) -> None:
        """Waits until files are on the disk, as `files.sync` does."""
        with self.errors():
            for name in names:
                if (self.path / name).exists():
                    files.sync(self.path / name)
            files.sync(self.path)


def _check_same(directory: Path, stored: Mapping[str, Any], cfg: Any) -> None:
    lines = config.difference(stored, cfg)
    if lines:
        raise FolderError(
            "\n  ".join(
                [
                    f"{directory} holds a run with another configuration"
                    " (field: stored -> given):",
                    *map(printable.line, lines),
                ]
            )
            + "\ngive the stored values to resume it, or another --workdir"
        )
