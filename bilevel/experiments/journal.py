"""The lines of a run: metrics and digests, one for each step; and its training time."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.experiments import digests, logs, messages, metrics, step_folder
from bilevel.experiments.folders import (
    CHECKPOINTS,
    DIGESTS,
    METRICS,
    SUMMARY,
    Folder,
    FolderError,
    is_finished,
)
from bilevel.experiments.step_folder import Links


class StoppedAfter(KeyboardInterrupt):
    """The run went as far as `stop_after`; it can be resumed."""


class Journal(NamedTuple):
    """Writes the lines of a run, in the order of its steps.

    Attributes:
      begin: `begin(restored step)` sets the lines after it aside; None: all lines. It
        says which lines are missing. Those of a finished run stay.
      require: `require(step)` raises what speaks against writing a step.
      log: `log(step, values)` writes a line of metrics. A finished run has its lines
        already.
      link: `link(step, digest)` writes the line of a state before it is saved, and
        brings all lines onto the disk; returns what the step is to say of them.
      finish: `finish()` says that nothing is to follow; returns what the summary is to
        say of the lines.
      seconds: the training time so far.
    """

    begin: Callable[[int | None], None]
    require: Callable[[int], None]
    log: Callable[[int, Mapping[str, Any]], None]
    link: Callable[[int, str], Links]
    finish: Callable[[], Links]
    seconds: Callable[[], float]


def start(folder: Folder, stop_after: int | None) -> Journal:
    """Starts the journal of a folder.

    Args:
      folder: of the run.
      stop_after: the last step that may be written.

    Returns:
      `Journal`. `require` raises `StoppedAfter`, `FolderError` if the run was finished
      before this step or the folder was deleted, or `RuntimeError` if there is a
      checkpoint that was not restored; `log` and `link` raise `MetricsError` and
      `FolderError` as `Run.log` does.
    """
    directory = folder.path
    is_begun, is_over, opened = False, False, time.monotonic()
    last = _last_step(folder) if is_finished(directory) else None
    written = _written(directory)

    def begin(step: int | None) -> None:
        nonlocal is_begun, written
        is_begun = True
        if last is None:
            written = _resumed(folder, step)

    def require(step: int) -> None:
        folder.require()
        if stop_after is not None and step > stop_after:
            raise StoppedAfter(f"stopped after step {stop_after}")
        if is_over or (last is not None and step > last):
            raise FolderError(
                f"the run in {directory} is finished, at step {last}; give another"
                " folder for more steps, and log and save before run.finish"
            )
        if is_begun:
            return
        latest = step_folder.latest_step(directory / CHECKPOINTS)
        if latest is not None:
            raise RuntimeError(
                f"{directory / CHECKPOINTS} holds step {latest}: call"
                " run.restore(template) before run.log and run.save"
            )
        begin(None)

    def append(name: str, step: int, values: Mapping[str, Any]) -> None:
        line = metrics.line(step, seconds(), values)
        if last is None:
            folder.append(name, line)
            written.steps[name].append(step)

    def log(step: int, values: Mapping[str, Any]) -> None:
        append(METRICS, step, values)

    def link(step: int, digest: str) -> Links:
        nonlocal written
        append(DIGESTS, step, {"sha256": digest})
        folder.sync(METRICS, DIGESTS)
        lines = {name: _count_to(step, one) for name, one in written.steps.items()}
        links = Links(lines, written.missing, written.parent)
        written = written._replace(parent=(step, digest))
        return links

    def finish() -> Links:
        nonlocal is_over, last
        folder.sync(METRICS, DIGESTS)
        is_over, last = True, _last_step(folder)
        lines = {name: len(one) for name, one in written.steps.items()}
        return Links(lines, written.missing, written.parent)

    def seconds() -> float:
        return written.seconds + time.monotonic() - opened

    return Journal(begin, require, log, link, finish, seconds)


class _Written(NamedTuple):
    """What was written: steps of the lines of each file, and what `Links` has."""

    steps: dict[str, list[int]]
    missing: dict[str, int]
    parent: tuple[int, str] | None
    seconds: float


def _written(directory: Path) -> _Written:
    """Returns what there is; nothing changes."""
    found = {name: metrics.split(directory / name) for name in (METRICS, DIGESTS)}
    steps = {name: one.steps for name, one in found.items()}
    missing = dict.fromkeys(steps, 0)
    if is_finished(directory):
        summary = json.loads((directory / SUMMARY).read_text())
        missing |= summary.get("missing", {})
    return _Written(steps, missing, None, found[METRICS].seconds)


def _resumed(folder: Folder, step: int | None) -> _Written:
    """Sets the lines after a step aside, and says which before it are missing."""
    found = {name: _keep(folder, name, step) for name in (METRICS, DIGESTS)}
    steps = {name: one.steps for name, one in found.items()}
    now = _Written(steps, dict.fromkeys(steps, 0), None, found[METRICS].seconds)
    if step is None:
        return now
    leaves = step_folder.read_leaves(folder.path / CHECKPOINTS / str(step))
    now = now._replace(parent=(step, digests.digest_of(leaves.records)))
    if leaves.links is None:
        return now
    for name, expected in leaves.links.lines.items():
        missing = max(0, expected - len(steps[name]))
        now.missing[name] = leaves.links.missing[name] + missing
        if missing:
            _say_missing(folder, name, expected, missing, step)
    return now


def _count_to(step: int, steps: Sequence[int]) -> int:
    """Counts the lines that a resume from a step would keep."""
    return sum(one <= step for one in steps)


def _keep(folder: Folder, name: str, step: int | None) -> metrics.Split:
    """Keeps the lines up to a step, and sets the others aside."""
    found = metrics.split(folder.path / name, step)
    if found.later or found.broken:
        aside = f"{name}-set-aside"
        folder.append(aside, "".join([*found.broken, *found.later]))
        folder.sync(aside)
        folder.replace(name, "".join(found.kept))
        where = f"are set aside in {aside}"
        if found.later:
            logs.note(folder.path, f"{len(found.later)} lines of {name} {where}")
        if found.broken:
            count = len(found.broken)
            messages.warn(folder.path, f"{count} broken lines of {name} {where}")
    return found


def _say_missing(
    folder: Folder, name: str, expected: int, missing: int, step: int
) -> None:
    """Says that the disk has lost lines, and from where they can come again."""
    checkpoints = folder.path / CHECKPOINTS
    found = [
        step_folder.intact_leaves(checkpoints / str(one))
        for one in step_folder.steps(checkpoints)
    ]
    whole = [
        one.step
        for one in found
        if one is not None
        and one.links is not None
        and one.links.lines[name] <= expected - missing
    ]
    again = f"; --restore_step={max(whole)} computes them again" if whole else ""
    messages.warn(
        folder.path,
        f"{name} has lost {missing} of the {expected} lines that it had when step"
        f" {step} was saved{again}",
    )


def _last_step(folder: Folder) -> int:
    lines = metrics.read(folder.path / METRICS, skip_broken=True)
    steps = [
        *(line["step"] for line in lines),
        *step_folder.steps(folder.path / CHECKPOINTS),
    ]
    return max(steps, default=0)
