"""Signals that end a run: held back where nothing must be done by half, and noticed.

Ctrl-C, and what schedulers and terminals send before they kill: SIGTERM (a time limit,
`kill`, `docker stop`), SIGUSR1 (SLURM's `--signal=USR1@60`), SIGHUP (a connection that
is gone). All of them do what Ctrl-C does.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)  # Windows has the first two
)
"""The signals, Ctrl-C first."""


def exit_code(number: int) -> int:
    """Returns the exit code of a program that a signal ended, as shells report it.

    Example:
      >>> exit_code(signal.SIGINT), exit_code(signal.SIGTERM)
      (130, 143)
    """
    return 128 + number


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Holds the first signal back until the block is done.

    A second Ctrl-C goes through; a second one of the others does not, for some senders
    send several. An exception in the middle of a save would leave Orbax's threads
    without an owner, and Python then hangs or crashes when it ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears of signals
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # Those that are ignored, or not Python's, stay as they are.
    previous = {n: handler for n, handler in handlers.items() if callable(handler)}
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed and number == signal.SIGINT:
            previous[number](number, frame)
        pressed.append(number)

    for number in previous:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if pressed:
            signal.raise_signal(pressed[0])


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], int]]:
    """Makes the other signals do what Ctrl-C does, while the block lasts.

    A signal that the program handles itself, or that is ignored (`nohup`), stays as it
    is. What comes after the first one is ignored, but for Ctrl-C.

    Yields:
      A function that returns the number of the first signal that came, whoever handled
      it, or 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    ours = {
        number: handler
        for number in SIGNALS[1:]
        if (handler := signal.getsignal(number)) is signal.SIG_DFL
    }
    watched = {signal.SIGINT, *ours}
    # Python writes the number of every signal to this pipe, before any handler runs.
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    seen = bytearray()

    def first() -> int:
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(reader, 4096))
        return next((number for number in seen if number in watched), 0)

    def like_ctrl_c(number: int, frame: Any) -> None:
        del number
        nonlocal is_told
        if is_told:
            return
        is_told = True
        # Whoever waits for Ctrl-C now, `bilevel.run` for instance, ends as for that.
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    is_told = False
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in ours:
        signal.signal(number, like_ctrl_c)
    try:
        yield first
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous)
        os.close(reader)
        os.close(writer)
