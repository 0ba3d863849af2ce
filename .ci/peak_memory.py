"""Watches a process and its descendants: `python3 peak_memory.py PID`.

On SIGTERM, or once the process is gone, it prints the most that they held in memory at
any one time. Pages that they share count once for each. Linux only; elsewhere it prints
nothing.
"""

import mmap
import os
import signal
import sys
import threading
from pathlib import Path


def table() -> dict[int, tuple[int, int]]:
    """Process -> its parent and its resident bytes."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The command stands in brackets, and may hold blanks and brackets.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        processes[int(folder.name)] = int(fields[1]), int(fields[21]) * mmap.PAGESIZE
    return processes


def total(root: int, processes: dict[int, tuple[int, int]]) -> int:
    """The sum over `root` and its descendants, without this program."""
    children: dict[int, list[int]] = {}
    for process, (parent, _) in processes.items():
        children.setdefault(parent, []).append(process)
    todo, size = [root], 0
    while todo:
        process = todo.pop()
        if process != os.getpid():
            size += processes[process][1]
            todo += children.get(process, [])
    return size


def main(root: int) -> None:
    """Looks twice a second."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    peak = 0
    while root in (processes := table()):
        peak = max(peak, total(root, processes))
        if stop.wait(0.5):
            break
    if peak:
        print(f"at most {peak / 1e9:.1f} GB in memory")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
