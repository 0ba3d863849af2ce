"""What a run says on standard error, and in its log."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bilevel.experiments import logs, printable

_SHOWN = 8  # lines of a warning on the screen; the log has all


def say(message: str, directory: Path | None = None) -> None:
    """Writes a message to standard error, and to the log of a run."""
    # Not stdout: that belongs to the program's own result.
    sys.stderr.write(f"{printable.block(message)}\n")
    if directory is not None:
        logs.note(directory, message)


def warn(directory: Path, message: str, lines: Sequence[str] = ()) -> None:
    """Writes a warning: its first lines to standard error, all of it to the log.

    Args:
      directory: of the run.
      message: the first line.
      lines: the others; what they hold from elsewhere ends no line.
    """
    lines = [*map(printable.line, lines)]
    shown = [*lines[:_SHOWN], *(["..."] if len(lines) > _SHOWN else [])]
    say("\n  ".join([f"warning: {message}", *shown]))
    logs.note(directory, "\n  ".join([f"warning: {message}", *lines]))
