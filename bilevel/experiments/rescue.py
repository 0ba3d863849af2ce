"""A folder that is deleted while its run goes on is put back from memory."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from bilevel.datasets import files
from bilevel.experiments import (
    checkpoint,
    folders,
    logs,
    messages,
    metrics,
    step_folder,
)
from bilevel.experiments.folders import CHECKPOINTS, DIGESTS, FolderError

Tree: TypeAlias = Any

_GROWING = (folders.METRICS, folders.DIGESTS, logs.NAME)
_SMALL = (
    folders.IGNORE,
    folders.CONFIG,
    folders.SOURCE,
    folders.DATA,
    folders.SUMMARY,
    "starts/*/*",
)


class Memory(NamedTuple):
    """The files of a run that are not its states, as they have to be.

    Attributes:
      take: `take()` remembers the files as they are; to be called when one was
        replaced. What is appended to a file with lines afterwards is known as well.
      add: `add(name, line)` remembers a line that could not be appended.
      put_back: `put_back()` writes the files anew, once, and returns where: the same
        folder, or a new one beside it if another run has taken its place.
      is_back: `is_back()` says whether that was done.
    """

    take: Callable[[], None]
    add: Callable[[str, str], None]
    put_back: Callable[[], Path]
    is_back: Callable[[], bool]


@contextlib.contextmanager
def remembered(directory: Path) -> Iterator[Memory]:
    """Remembers the files of a folder that are ours; what a program adds may be large.

    Files that lines are appended to are held open, not in memory: an open file outlives
    its name (on Windows it cannot be deleted at all).

    Yields:
      `Memory`. Its `put_back` raises `FolderError` if the disk refuses.
    """
    contents: dict[str, bytes] = {}
    opened: dict[str, BinaryIO] = {}
    added: dict[str, str] = {}
    done: list[Path] = []

    with contextlib.ExitStack() as stack:

        def take() -> None:
            stack.close()
            for name in _GROWING:
                file = (directory / name).open("a+b")  # makes it if it is not there
                opened[name] = stack.enter_context(file)
            for path in (one for name in _SMALL for one in directory.glob(name)):
                contents[str(path.relative_to(directory))] = path.read_bytes()

        def add(name: str, line: str) -> None:
            added[name] = added.get(name, "") + line

        def put_back() -> Path:
            if done:
                return done[0]
            lines = {name: b"" for name in added}
            lines |= {name: _content(file) for name, file in opened.items()}
            lines |= {n: lines[n] + text.encode() for n, text in added.items()}
            target = _target(directory)
            # The configuration last: a folder without one is no run.
            ordered = sorted({**lines, **contents}.items(), key=_is_config)
            with folders.folder_errors(target):
                for name, content in ordered:
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    files.replace_bytes(target / name, content)
            done.append(target)
            return target

        yield Memory(take, add, put_back, lambda: bool(done))


@contextlib.contextmanager
def put_back_if_deleted(
    directory: Path,
    is_held: Callable[[], bool],
    memory: Memory,
    seconds: Callable[[], float],
    checkpoints: checkpoint.Checkpoints,
    step: int,
    state: Tree,
) -> Iterator[None]:
    """Saves a state; if the folder was deleted, puts it back with this state.

    Raises:
      FolderError: it was deleted.
    """
    if is_held():
        try:
            yield
        except checkpoint.CheckpointError:
            if is_held():
                raise
        else:
            return
    checkpoints.abandon()
    target = memory.put_back()
    try:
        _save_anew(target, step, state, seconds())
    except (checkpoint.CheckpointError, OSError):
        # A save that was under way is still busy there; its end may take minutes, so
        # that it is waited for only if need be.
        with contextlib.suppress(checkpoint.CheckpointError):
            checkpoints.wait()
        _save_anew(target, step, state, seconds())
    raise FolderError(
        f"{deleted(directory, target)}, with the state of step {step}; earlier states"
        f" are lost. The same command with --workdir={target} goes on"
    )


@contextlib.contextmanager
def put_back_at_the_end(
    directory: Path,
    is_held: Callable[[], bool],
    memory: Memory,
    checkpoints: checkpoint.Checkpoints,
) -> Iterator[None]:
    """Puts a folder back that was deleted after the last save, or without one."""
    try:
        yield
    finally:
        if not (is_held() or memory.is_back()):
            checkpoints.abandon()
            with contextlib.suppress(FolderError):  # what ends the run is said already
                target = memory.put_back()
                messages.say(f"{deleted(directory, target)}; states are lost")


def _save_anew(target: Path, step: int, state: Tree, seconds: float) -> None:
    step_folder.remove_unsaved(target / CHECKPOINTS, mark=None)  # half deleted
    with (
        folders.locked(target),
        checkpoint.open_checkpoints(target / CHECKPOINTS) as fresh,
    ):
        digest = fresh.save(step, state, force=True)
        line = metrics.line(step, seconds, {"sha256": digest})
        metrics.append(target / DIGESTS, line)


def deleted(directory: Path, target: Path) -> str:
    """Says what happened to a folder, and where its files are now."""
    return (
        f"{directory} was deleted while the run was writing to it; what was in memory"
        f" is in {target} again"
    )


def _is_config(item: tuple[str, bytes]) -> bool:
    return item[0] == folders.CONFIG


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _target(directory: Path) -> Path:
    if not (directory / folders.CONFIG).exists():
        return directory
    return folders.new_directory(f"{directory.name}-rescued", directory.parent)
