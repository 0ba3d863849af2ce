"""The log of a run, log.txt: messages, warnings, errors, with the time of day."""

import contextlib
import datetime
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bilevel.experiments import printable

NAME = "log.txt"


@contextlib.contextmanager
def log_file(directory: Path) -> Iterator[None]:
    """Sends what is logged, warnings too, to the log of the run as well.

    What Orbax logs goes there only: a write that fails is said in one line by us, and
    in hundreds by its threads.
    """
    handler = logging.FileHandler(directory / NAME)
    pattern = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(logging.Formatter(pattern, "%Y-%m-%d %H:%M:%S"))
    # A disk that is full must not be the end of a run, nor of its error message.
    handler.handleError = lambda record: None
    root, show = logging.getLogger(), warnings.showwarning
    others = list(root.handlers)

    def show_and_log(*arguments: Any, **options: Any) -> None:
        show(*arguments, **options)
        text = warnings.formatwarning(*arguments[:4])
        note(directory, text.rstrip())

    for one in others:
        one.addFilter(_is_not_orbax)
    root.addHandler(handler)
    warnings.showwarning = show_and_log
    try:
        yield
    finally:
        warnings.showwarning = show
        root.removeHandler(handler)
        for one in others:
            one.removeFilter(_is_not_orbax)
        with contextlib.suppress(OSError):
            handler.close()


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def note(directory: Path, message: str) -> None:
    """Appends a message to the log of a run, with the time of day."""
    now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
    with contextlib.suppress(OSError), (directory / NAME).open("a") as file:
        file.write(f"{now} {printable.block(message)}\n")
