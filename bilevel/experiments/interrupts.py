"""Ctrl-C: held back where half of something must not be done, and noticed by anyone."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Holds the first Ctrl-C back until the block is done; a second one goes through.

    An exception in the middle of a save would leave Orbax's threads without an owner,
    and Python then hangs or crashes when it ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears of signals
        return
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous):  # ignored, or not Python's
        yield
        return
    is_pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal is_pressed
        if is_pressed:
            previous(number, frame)
        is_pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if is_pressed:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed, whoever handled it."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    # Python writes the number of every signal to this pipe, before any handler runs.
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    seen = bytearray()

    def was_interrupted() -> bool:
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(reader, 4096))
        return signal.SIGINT in seen

    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield was_interrupted
    finally:
        signal.set_wakeup_fd(previous)
        os.close(reader)
        os.close(writer)
