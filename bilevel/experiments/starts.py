"""What is recorded of every start of a run: command, environment, source.

starts/<n>/command.json      command line, flags, time
starts/<n>/environment.json  see `environment.record`
starts/<n>/source.json       see `source.record`; of bilevel too, if it is elsewhere
starts/<n>/diff.patch        from the commit to the code that ran
starts/<n>/bilevel.patch     the same of bilevel, if it has a repository of its own
starts/<n>/program.py.txt    the program, where commit and diff are not all
starts/<n>/cells.py.txt      the cells of a notebook that were run before, in order
"""

import datetime
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bilevel
from bilevel.datasets import files
from bilevel.experiments import environment, messages, source
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


def record(
    directory: Path,
    program: str,
    argv: Sequence[str],
    flags: Mapping[str, Any],
    *,
    is_launched: bool = True,
) -> None:
    """Records a start (see `write`), and says what is not as it should be, or was."""
    before = read_all(directory)
    now = write(directory, program, argv, flags, is_launched=is_launched)
    lock, numbers = now.environment["lock"], now.environment["random_numbers"]
    if lock is None:
        message = "no requirements.lock: versions are recorded, not checked"
        messages.warn(directory, message)
    elif lock["mismatches"]:
        message = f"packages differ from {lock['file']}:"
        messages.warn(directory, message, lock["mismatches"])
    for name, code in now.source.items():
        if code and code["commit"] is None:
            message = "no git commit: of the code, the program's own file is recorded"
            messages.warn(directory, message)
        elif code and not code["is_complete"]:
            message = f"the recorded source of {name} is not complete:"
            messages.warn(directory, message, _missing(code))
    if numbers != "as expected":
        message = "random numbers are not those of bilevel's record:"
        messages.warn(directory, message, numbers)
    if before and (changes := difference(before[-1], now)):
        messages.warn(directory, "since the run was started last:", changes)


def write(
    directory: Path,
    program: str,
    argv: Sequence[str],
    flags: Mapping[str, Any],
    *,
    is_launched: bool = True,
) -> Start:
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
    cells = "" if is_launched else _cells_run_so_far()
    text = cells or _text(program)
    lock = environment.find_lock(program)
    code, library = source.record(program), _library_source(program)
    start = Start(
        {
            "argv": list(argv),
            "flags": dict(flags),
            "is_launched": is_launched,
            "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        },
        environment.record(lock),
        {
            "program": code.record | {"sha256": _sha256(text)},
            "bilevel": library and library.record,
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
        elif text and not code.record["is_complete"]:
            files.replace_text(folder / _PROGRAM, text)
        # The command last: a start without one was cut short.
        _write(folder / _SOURCE, start.source)
        _write(folder / _ENVIRONMENT, start.environment)
        _write(folder / _COMMAND, start.command)
    return start


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
    code = _code_difference("program", before, now)
    code += _code_difference("bilevel", before, now)
    return code + environment.difference(before.environment, now.environment)


def _cells_run_so_far() -> str:
    """Returns the text of the notebook's cells, '' where there is no notebook."""
    # Not imported: where there is a notebook, it is there already.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    texts = [] if shell is None else shell.user_ns.get("In", [])
    numbered = [f"# In [{n}]:\n{text}\n" for n, text in enumerate(texts) if text]
    return "\n".join(numbered)


def _code_difference(which: str, before: Start, now: Start) -> list[str]:
    old, new = before.source.get(which) or {}, now.source.get(which) or {}
    name = "code" if which == "program" else "code of bilevel"
    trees = [one.get("tree") for one in (old, new)]
    if None not in trees:
        is_same = trees[0] == trees[1]
    else:  # all that is known is the file of the program
        is_same = old.get("sha256") == new.get("sha256") and trees[0] == trees[1]
    if is_same:
        return []
    return [f"{name}: {_state(old)} -> {_state(new)}"]


def _missing(code: Mapping[str, Any]) -> list[str]:
    """Why commit and diff are not all of a source."""
    reason = code.get("reason") or "the changes are larger than a record may be"
    return list(code.get("left_out") or [reason])


def _text(program: str) -> str:
    path = Path(program)
    return path.read_text(errors="replace") if path.is_file() else ""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _state(record: Mapping[str, Any]) -> str:
    if record.get("commit") is None:
        known = (
            f", program sha256 {record['sha256'][:12]}" if "sha256" in record else ""
        )
        return f"no commit{known}"
    dirty = " with changes" if record["is_dirty"] else ""
    return f"commit {record['commit'][:12]}{dirty}"


def _library_source(program: str) -> source.Source | None:
    """Records bilevel itself if it runs from a repository of its own."""
    package = Path(bilevel.__file__).resolve()
    top = source.repository(package)
    if top is None or top == source.repository(program):
        return None
    # Site-packages within somebody's repository are no source of ours.
    tracked = package.relative_to(top).as_posix() == "bilevel/__init__.py"
    return source.record(package) if tracked else None


def _read(path: Path, skip_damaged: bool) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        if skip_damaged:
            return {}
        raise FolderError(f"{path} is damaged ({error})") from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    files.replace_text(path, json.dumps(content, indent=1) + "\n")


def _write_diff(path: Path, diff: str) -> None:
    # A patch holds the bytes of the files, whatever their encoding.
    files.replace_bytes(path, diff.encode(errors="surrogateescape"))
