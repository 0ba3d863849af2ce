"""A folder that is deleted while its run goes on is put back from memory."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bilevel.datasets import files
from bilevel.experiments import folders

_STARTS = "starts/*/*"


class Memory(NamedTuple):
    """The files of a run that are not its states, as they have to be.

    Attributes:
      take: `take()` remembers the files as they are; to be called when one was
        replaced. What is appended to one of `growing` afterwards is known as well.
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
def remembered(directory: Path, growing: tuple[str, ...]) -> Iterator[Memory]:
    """Remembers the files of a folder.

    Args:
      directory: the folder of a run.
      growing: the names of files that lines are appended to. They may be long: they are
        held open, not in memory, since an open file outlives its name (on Windows it
        cannot be deleted at all).

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
            for name in growing:
                file = (directory / name).open("a+b")  # makes it if it is not there
                opened[name] = stack.enter_context(file)
            for path in (*directory.glob("*"), *directory.glob(_STARTS)):
                name = str(path.relative_to(directory))
                if path.is_file() and name not in (*growing, folders.LOCK):
                    contents[name] = path.read_bytes()

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


def _is_config(item: tuple[str, bytes]) -> bool:
    return item[0] == folders.CONFIG


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _target(directory: Path) -> Path:
    if not (directory / folders.CONFIG).exists():
        return directory
    return folders.new_directory(f"{directory.name}-rescued", directory.parent)
