"""What `reproduce` will run, and which code of it is not the clone's.

A run folder names a program and holds a configuration file, which is code. The program
must be a file of the clone; what else is executed is shown, and asked about.
"""

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.experiments import config, folders, git, metrics, printable
from bilevel.experiments.loaded import LoadedRun


class ReproduceError(RuntimeError):
    """The run cannot be repeated; the message says why."""


class Plan(NamedTuple):
    """What will be run.

    Attributes:
      command: the command line, but for the folder of the new run.
      lines: program, commit and configuration, in words.
      foreign: the files that are executed and are not the clone's.
    """

    command: list[str]
    lines: list[str]
    foreign: list[str]

    def text(self) -> str:
        """The plan in words, for a terminal."""
        command = shlex.join(self.command)
        return "\n  ".join(map(printable.line, [*self.lines, f"command: {command}"]))


def make(
    record: LoadedRun, program: str | Path | None, arguments: Sequence[str]
) -> Plan:
    """Plans the repetition of a run.

    Args:
      record: the run.
      program: the file to run, if it is not that of the record.
      arguments: more flags for the program.

    Raises:
      ReproduceError: there is no program that may be run.
    """
    top = git.repository(Path.cwd())
    if program is not None:
        file = Path(program)
        foreign = []
    else:
        file = _program_of_the_clone(record, top)
        known = top is not None and git.is_tracked(top, file)
        foreign = [] if known else [f"{file} (sha256 {_sha256(file.read_bytes())})"]
    clone = "no repository" if top is None else f"{top}, commit {git.head(top)}"
    lines = [
        f"runs {file}",
        f"sha256 {_sha256(file.read_bytes())}" if file.is_file() else "no such file",
        f"in {clone}; the record has commit {_commit(record)}",
    ]
    path = record.directory / folders.SOURCE
    text = path.read_text()
    if text:
        name = git.tracked_name(top, text) if top is not None else None
        digest = f"sha256 {_sha256(text.encode())}"
        if name is None:
            foreign.append(f"{path} ({digest})")
        what = "no file of the clone" if name is None else f"{name} of the clone"
        lines.append(f"configuration: {path}, {digest}: {what}")
    command = [sys.executable, str(file), *_flags(record, bool(text)), *arguments]
    return Plan(command, lines, foreign)


def _program_of_the_clone(record: LoadedRun, top: Path | None) -> Path:
    first = record.starts[0]
    name = first.source["program"].get("program")
    if top is None or not name:
        raise ReproduceError(
            f"{first.command['argv'][0]} is in no repository here: go to a clone of the"
            " program's repository, or pass --program=<file>"
        )
    file = (top / str(name)).resolve()
    if not file.is_relative_to(top) or file.is_relative_to(record.directory.resolve()):
        raise ReproduceError(
            f"the record names a program that is not in the clone {top}: {file}. If it"
            f" is what you want to run, pass --program={shlex.quote(str(file))}"
        )
    if not file.is_file():
        raise ReproduceError(
            f"there is no {file}: go to a clone of the program's repository, or pass"
            " --program=<file>"
        )
    return file


def _commit(record: LoadedRun) -> str:
    program: Mapping[str, Any] = record.starts[0].source["program"]
    changes = " with changes" if program.get("is_dirty") else ""
    return f"{program.get('commit') or 'none'}{changes}"


def _flags(record: LoadedRun, has_file: bool) -> list[str]:
    """Returns the flags that repeat a record."""
    # Every value as a flag: the file may take some from elsewhere.
    values = {
        f"--cfg.{name}={_text(value)}"
        for name, value in config.flat_dict(record.config).items()
    }
    options = record.starts[0].command["flags"]
    is_deterministic = "" if options["deterministic"] else "no"
    saved = metrics.read(record.directory / folders.DIGESTS)
    steps = ",".join(str(line["step"]) for line in saved)
    file = record.directory.resolve() / folders.SOURCE
    return [
        *([f"--config={file}"] if has_file else []),  # else the program had its own
        f"--{is_deterministic}deterministic",
        *([f"--save_steps={steps}"] if steps else []),
        *sorted(values),
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return "none" if value is None else str(value)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
