"""The lines of a run: metrics and digests, one for each step; and its training time."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.experiments import folders, metrics, step_folder
from bilevel.experiments.folders import CHECKPOINTS, DIGESTS, METRICS, FolderError
from bilevel.experiments.rescue import Memory


class StoppedAfter(KeyboardInterrupt):
    """The run went as far as `stop_after`; it can be resumed."""


class Journal(NamedTuple):
    """Writes the lines of a run, in the order of its steps.

    Attributes:
      begin: `begin(restored step)` drops the lines after it; None: all lines. Those of
        a finished run stay.
      require: `require(step)` raises what speaks against writing a step.
      append: `append(name of the file, step, values)` writes a line, or has it
        remembered if the folder is gone. A finished run has its lines already.
      seconds: the training time so far.
    """

    begin: Callable[[int | None], None]
    require: Callable[[int], None]
    append: Callable[[str, int, Mapping[str, Any]], None]
    seconds: Callable[[], float]


def start(
    directory: Path,
    memory: Memory,
    is_held: Callable[[], bool],
    stop_after: int | None,
) -> Journal:
    """Starts the journal of a folder.

    Args:
      directory: the folder of the run.
      memory: of the files in it.
      is_held: says whether the folder is still there.
      stop_after: the last step that may be written.

    Returns:
      `Journal`. `require` raises `StoppedAfter`, `FolderError` if the run was finished
      before this step, or `RuntimeError` if there is a checkpoint that was not
      restored; `append` raises `MetricsError` and `FolderError` as `Run.log` does.
    """
    folder = directory / CHECKPOINTS
    is_begun, offset, opened = False, 0.0, time.monotonic()
    is_finished = folders.is_finished(directory)
    last = _last_step(directory) if is_finished else None

    def begin(step: int | None) -> None:
        nonlocal is_begun, offset
        kept = last if is_finished else step
        with folders.folder_errors(directory):
            offset = metrics.keep(directory / METRICS, kept)
            metrics.keep(directory / DIGESTS, kept)
            memory.take()
        is_begun = True

    def require(step: int) -> None:
        if stop_after is not None and step > stop_after:
            raise StoppedAfter(f"stopped after step {stop_after}")
        if last is not None and step > last:
            raise FolderError(
                f"the run in {directory} is finished, at step {last}; give another"
                " folder for more steps"
            )
        if is_begun:
            return
        latest = step_folder.latest_step(folder)
        if latest is not None:
            raise RuntimeError(
                f"{folder} holds step {latest}: call run.restore(template) before"
                " run.log and run.save"
            )
        begin(None)

    def append(name: str, step: int, values: Mapping[str, Any]) -> None:
        line = metrics.line(step, seconds(), values)
        if is_finished:
            return
        if not is_held():
            memory.add(name, line)
            return
        with folders.folder_errors(directory):
            metrics.append(directory / name, line)

    def seconds() -> float:
        return offset + time.monotonic() - opened

    return Journal(begin, require, append, seconds)


def _last_step(directory: Path) -> int:
    lines = metrics.read(directory / METRICS)
    steps = [
        *(line["step"] for line in lines),
        *step_folder.steps(directory / CHECKPOINTS),
    ]
    return max(steps, default=0)
