"""What is recorded of every start of a run: command, environment, source.

starts/<n>/command.json      command line, flags, time
starts/<n>/environment.json  see `environment.record`
starts/<n>/source.json       see `source.record`; of bilevel too, if it is elsewhere;
                             `modules`: what was loaded from outside of these sources,
                             by SHA-256, up to the `start` or the `end` of the process
starts/<n>/diff.patch        from the commit to the code that ran
starts/<n>/bilevel.patch     the same of bilevel, if it has a repository of its own
starts/<n>/program.py.txt    the program, where commit and diff are not all
starts/<n>/cells.py.txt      the cells of a notebook that were run before, in order

Values that look like secrets are left out of command and cells, see `redaction`.
"""

import contextlib
import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bilevel
from bilevel.datasets import files
from bilevel.experiments import (
    code_difference,
    environment,
    git,
    interrupts,
    messages,
    modules,
    notebook,
    redaction,
    source,
)
from bilevel.experiments.folders import FolderError, folder_errors

_STARTS = "starts"
_COMMAND, _ENVIRONMENT, _SOURCE = "command.json", "environment.json", "source.json"
_DIFF, _LIBRARY, _PROGRAM = "diff.patch", "bilevel.patch", "program.py.txt"
_CELLS = "cells.py.txt"


class Start(NamedTuple):
    """What was recorded of one start, each a JSON object."""

    command: dict[str, Any]
    environment: dict[str, Any]
    source: dict[str, Any]


class Written(NamedTuple):
    """A start that was recorded just now.

    Attributes:
      start: the record.
      folder: where it is.
      held: the files of the sources that are recorded.
      loaded: the files of the modules that were loaded by then.
      top: of the program's repository, or None.
      redacted: the flags and names whose values were left out.
    """

    start: Start
    folder: Path
    held: frozenset[Path]
    loaded: frozenset[Path]
    top: Path | None
    redacted: list[str]


@contextlib.contextmanager
def recorded(
    directory: Path,
    program: str,
    argv: Sequence[str],
    flags: Mapping[str, Any],
    *,
    is_launched: bool = True,
) -> Iterator[Callable[[], None]]:
    """Records a start, and at the end of the block what was loaded since.

    Yields:
      A function that does the latter at once: to be called before the folder is sealed.

    Raises:
      FolderError: the disk refuses.
    """
    with interrupts.held_back():
        written = record(directory, program, argv, flags, is_launched=is_launched)
    started, is_complete = time.time(), False

    @interrupts.held_back()
    def complete() -> None:
        nonlocal is_complete
        if not is_complete:
            _complete(directory, written, started)
        is_complete = True

    try:
        yield complete
    finally:
        with contextlib.suppress(FolderError):  # what ended the block counts more
            complete()


def record(
    directory: Path,
    program: str,
    argv: Sequence[str],
    flags: Mapping[str, Any],
    *,
    is_launched: bool = True,
) -> Written:
    """Records a start (see `write`), and says what is not as it should be, or was."""
    before = read_all(directory)
    written = write(directory, program, argv, flags, is_launched=is_launched)
    now = written.start
    lock, numbers = now.environment["lock"], now.environment["random_numbers"]
    if lock is None:
        message = "no requirements.lock: versions are recorded, not checked"
        messages.warn(directory, message)
    elif lock["mismatches"]:
        message = f"packages differ from {lock['file']}:"
        messages.warn(directory, message, lock["mismatches"])
    for name in ("program", "bilevel"):
        code = now.source[name] or {}
        if name == "program" and code["commit"] is None:
            messages.warn(directory, _no_commit(code))
        elif "reason" in code:
            message = f"the recorded source of {name} is not complete:"
            messages.warn(directory, message, [code["reason"]])
    _warn_of_modules(directory, now.source["modules"])
    if line := code_difference.new_files(now.source, written.redacted):
        messages.say(line, directory)
    if numbers != "as expected":
        message = "random numbers are not those of bilevel's record:"
        messages.warn(directory, message, numbers)
    if before and (changes := difference(before[-1], now)):
        messages.warn(directory, "since the run was started last:", changes)
    return written


def _complete(directory: Path, written: Written, started: float) -> None:
    """Adds what was loaded since the start to the record of it.

    Raises:
      FolderError: the disk refuses.
    """
    if not written.folder.is_dir():  # somebody deleted it
        return
    before = written.start.source["modules"]
    # A file that was changed meanwhile is not the one of the recorded source.
    changed = {
        path
        for path in {*modules.loaded().values()} - written.loaded
        if _was_changed(path, started)
    }
    found = modules.outside(written.held - changed, written.top)
    later = {name: one for name, one in found.items() if name not in before}
    code = written.start.source["program"]
    now = written.start.source | {
        "program": code | {"is_complete": code["is_complete"] and not later},
        "modules": before | later,
        "modules_at": "end",
    }
    with folder_errors(directory):
        _write(written.folder / _SOURCE, now)
    _warn_of_modules(directory, later)


def write(
    directory: Path,
    program: str,
    argv: Sequence[str],
    flags: Mapping[str, Any],
    *,
    is_launched: bool = True,
) -> Written:
    """Records a start.

    Cost: half a second.

    Args:
      directory: of the run.
      program: the file of the program.
      argv: the command line, program name first.
      flags: the flags that every program has, by name.
      is_launched: by `bilevel.launch`, so that the command starts it again. Otherwise
        the cells of a notebook, if there is one, are recorded.

    Raises:
      FolderError: the disk refuses.
    """
    cells, secrets = redaction.redacted_code(
        "" if is_launched else notebook.cells_run_so_far()
    )
    command, flags_left_out = redaction.redacted_command(argv)
    path = Path(program).resolve()
    text = cells.encode() if cells else _content(path)
    lock = environment.find_lock(program)
    loaded = modules.loaded()
    used = frozenset({path, *loaded.values()})
    code, library = source.record(program, used), _library_source(program, used)
    top = git.repository(program)
    # The text of a configuration file is config.py.txt.
    configs = {n for n in loaded if is_launched and n.startswith(modules.CONFIG_PREFIX)}
    # The text of the program is kept as well, where it is not in the tree.
    held = code.files | {path} | {loaded[name] for name in configs}
    held |= frozenset() if library is None else library.files
    outside = modules.outside(held, top)
    is_rebuilt = code.record["is_complete"] and (bool(cells) or path in code.files)
    program_record = code.record | {
        "is_complete": is_rebuilt and not outside,
        "sha256": None if text is None else hashlib.sha256(text).hexdigest(),
    }
    if text is None and "reason" not in program_record:
        program_record["reason"] = _NO_FILE
    start = Start(
        {
            "argv": command,
            "flags": dict(flags),
            "is_launched": is_launched,
            "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        },
        environment.record(lock),
        {
            "program": program_record,
            "bilevel": library and library.record,
            "modules": outside,
            "modules_at": "start",
        },
    )
    with folder_errors(directory):
        number = max((int(one.name) for one in _folders(directory)), default=0) + 1
        folder = directory / _STARTS / str(number)
        folder.mkdir(parents=True)
        _write_diff(folder / _DIFF, code.diff)
        if library is not None:
            _write_diff(folder / _LIBRARY, library.diff)
        if cells:
            files.replace_text(folder / _CELLS, cells)
        elif text and not is_rebuilt:
            files.replace_bytes(folder / _PROGRAM, text)
        # The command last: a start without one was cut short.
        _write(folder / _SOURCE, start.source)
        _write(folder / _ENVIRONMENT, start.environment)
        _write(folder / _COMMAND, start.command)
    files_of_modules = frozenset(loaded.values())
    left_out = [*flags_left_out, *secrets]
    return Written(start, folder, held, files_of_modules, top, left_out)


_NO_FILE = "the program is no file (standard input, -c): its text is not known"


def read_all(directory: Path, *, skip_damaged: bool = False) -> list[Start]:
    """Returns the starts of a run, the first one first.

    Args:
      directory: of the run.
      skip_damaged: a record that is damaged is empty.

    Raises:
      FolderError: a record is damaged.
    """
    found = []
    for folder in _folders(directory):
        if not (folder / _COMMAND).is_file():  # a start that was cut short
            continue
        paths = [folder / name for name in (_COMMAND, _ENVIRONMENT, _SOURCE)]
        found.append(Start(*(_read(one, skip_damaged) for one in paths)))
    return found


def _folders(directory: Path) -> list[Path]:
    """Returns the folders of the starts, the first one first."""
    found = [one for one in (directory / _STARTS).glob("*") if one.name.isdecimal()]
    return sorted(found, key=lambda one: int(one.name))


def difference(before: Start, now: Start) -> list[str]:
    """Lists what differs between two starts, the likeliest cause first."""
    return [
        *code_difference.code(before.source, now.source),
        *environment.difference(before.environment, now.environment),
        *code_difference.other_files(before.source, now.source),
    ]


def _no_commit(code: Mapping[str, Any]) -> str:
    if code["sha256"] is None:
        return f"no git commit, and {_NO_FILE}; no code is recorded"
    return "no git commit: of the code, the program's own file is recorded"


def _warn_of_modules(directory: Path, found: Mapping[str, Any]) -> None:
    if found:
        message = "modules from outside of the recorded source, by SHA-256 only:"
        messages.warn(directory, message, modules.summary(found))


def _was_changed(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime > since
    except OSError:
        return False


def _content(path: Path) -> bytes | None:
    """Returns the content of a program, None if it is no file."""
    return path.read_bytes() if path.is_file() else None


def _library_source(program: str, used: frozenset[Path]) -> source.Source | None:
    """Records bilevel itself if it runs from a repository of its own."""
    package = Path(bilevel.__file__).resolve()
    top = git.repository(package)
    if top is None or top == git.repository(program):
        return None
    # Site-packages within somebody's repository are no source of ours.
    tracked = package.relative_to(top).as_posix() == "bilevel/__init__.py"
    return source.record(package, used) if tracked else None


def _read(path: Path, skip_damaged: bool) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        if skip_damaged:
            return {}
        raise FolderError(f"{path} is damaged ({error})") from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    files.replace_text(path, json.dumps(content, indent=1) + "\n")


def _write_diff(path: Path, diff: str) -> None:
    # A patch holds the bytes of the files, whatever their encoding.
    files.replace_bytes(path, diff.encode(errors="surrogateescape"))
