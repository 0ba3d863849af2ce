"""The same bits on any number of cores: one thread.

XLA splits large matrix products among its threads, and with them the order of sums: on
two cores training ends with other bits than on one. `NPROC` sets the number of threads;
XLA reads it when the first computation starts its client.
"""

import os
from pathlib import Path

_VARIABLE = "NPROC"
_THREAD = "tf_XLAEigen"  # how XLA names the threads of its client, on Linux


class StartedTooEarlyError(RuntimeError):
    """JAX computed something before it could be told how."""


def use_one_thread() -> None:
    """Makes JAX compute with one thread on a CPU, in this process.

    Raises:
      StartedTooEarlyError: JAX has started with more (seen on Linux only).
    """
    if os.environ.get(_VARIABLE) == "1":
        return
    if num_xla_threads() > 1:
        raise StartedTooEarlyError(
            "--deterministic: JAX has started with several threads before"
            " bilevel.launch was called; move what it computes into main, or set the"
            f" environment variable {_VARIABLE}=1"
        )
    os.environ[_VARIABLE] = "1"


def num_xla_threads() -> int:
    """Returns how many threads XLA computes with; 0 before it starts, and off Linux."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(path.read_text().strip())
        except OSError:  # a thread that has just ended
            continue
    return names.count(_THREAD)
