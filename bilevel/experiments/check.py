"""Whether the folder of a run is what was written, file by file.

A finished run has a seal over all of its files (see `seal`). Of an unfinished one every
step has a seal of its own, and what several files say of the same thing is compared:
steps with the names of their folders, the sha256 of states with digests.jsonl, with the
states that they follow and with summary.json, numbers of lines with those that were
written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.datasets import manifest
from bilevel.experiments import (
    digests,
    folders,
    metrics,
    printable,
    seal,
    step_folder,
)
from bilevel.experiments.folders import CHECKPOINTS, DIGESTS, METRICS, SUMMARY
from bilevel.experiments.step_folder import Sealed


class Report(NamedTuple):
    """What a check has found.

    Attributes:
      wrong: `{file: what is wrong}`.
      notes: what cannot be checked.
      lost: `{file: number of lines}` that the run was resumed without.
      is_sealed: whether all files were compared with a seal.
      directory: of the run.
    """

    wrong: dict[str, str]
    notes: list[str]
    lost: dict[str, int]
    is_sealed: bool
    directory: Path

    def text(self) -> str:
        """The verdict in words."""
        if self.wrong:
            lines = [f"{name}: {what}" for name, what in sorted(self.wrong.items())]
            head = f"{self.directory} is damaged:"
        else:
            lines = []
            all_of_it = "every file is as it was sealed"
            what = all_of_it if self.is_sealed else "nothing is known to be wrong"
            head = f"{self.directory}: {what}"
        lost = [
            f"{one} lacks {n} lines, lost before a resume"
            for one, n in self.lost.items()
        ]
        return "\n  ".join(map(printable.line, [head, *lines, *lost, *self.notes]))


def check(directory: Path, *, in_full: bool = True) -> Report:
    """Checks the folder of a run; nothing in it changes.

    Cost: reads every file, 0.1 s per 100 MB.

    Args:
      directory: of the run.
      in_full: look for damage inside of the steps of an unfinished run, too. Without,
        a step that is being removed by a run that goes on is no damage.

    Returns:
      `Report`.

    Raises:
      FolderError: it is no run, or has links to elsewhere.
    """
    wrong, notes = {}, []
    folders.require_plain(directory)
    try:
        folders.read_config(directory)
    except folders.FolderError as error:
        if not (directory / folders.CONFIG).exists() and not seal.is_sealed(directory):
            raise
        wrong[folders.CONFIG] = str(error)
    wrong |= _unreadable(directory)
    # A run may be going on: first what it writes last.
    has_summary = (directory / SUMMARY).exists() and SUMMARY not in wrong
    summary = _json(directory / SUMMARY) if has_summary else None
    is_sealed = seal.is_sealed(directory)
    leaves, damaged = _leaves(directory, in_full=in_full and not is_sealed)
    steps = {}
    for name in (METRICS, DIGESTS):
        steps[name], broken = metrics.steps(directory / name)
        if broken is not None:
            wrong[name] = f"line {broken} is broken"
    if is_sealed:
        differences, added = seal.differences(directory)
        wrong |= differences
        notes += [f"{one} {seal.ADDED}" for one in added]
    elif summary is None:
        notes.append("the run is not finished, so that it has no seal")
    elif "lines" in summary:
        wrong[seal.NAME] = "is missing, although the run is finished"
    else:
        notes.append("the run was finished by a version of bilevel that made no seals")
    wrong = damaged | wrong
    for name, what in _cross_check(directory, leaves, steps, summary).items():
        wrong.setdefault(name, what)
    for folder in step_folder.unsealed(directory / CHECKPOINTS):
        name = folder.relative_to(directory).as_posix()
        notes.append(
            f"{name} has no {manifest.NAME}: its save, or a copy, was cut short"
        )
    lost = {name: one for name, one in _lost(leaves, summary).items() if one}
    return Report(wrong, notes, lost, is_sealed, directory)


def step_difference(directory: Path, leaves: Sealed) -> str | None:
    """Says how a saved state is not the one that the run had at this step.

    Args:
      directory: of the run.
      leaves: what is recorded with the step.
    """
    known = _known_digests(directory)
    own = leaves.step, digests.digest_of(leaves.records)
    parent = None if leaves.links is None else leaves.links.parent
    for what, pair in (("is a state", own), ("follows a state", parent)):
        if pair is not None and known.get(pair[0], pair[1]) != pair[1]:
            step, found = pair
            return (
                f"{what} of step {step} with sha256 {found[:12]}, but {DIGESTS} has"
                f" {known[step][:12]} for that step: it is of another run, or the file"
                " was changed"
            )
    return None


def _unreadable(directory: Path) -> dict[str, str]:
    """Finds records that are no JSON."""
    wrong = {}
    starts = sorted(directory.glob("starts/*/command.json"))  # others were cut short
    records = [one for path in starts for one in sorted(path.parent.glob("*.json"))]
    records.append(directory / SUMMARY)
    for path in [*records, directory / folders.DATA]:
        try:
            is_object = not path.exists() or isinstance(_json(path), dict)
            problem = None if is_object else "is no JSON object"
        except (ValueError, OSError, RecursionError) as error:
            problem = f"is damaged ({error})"
        if problem is not None:
            wrong[path.relative_to(directory).as_posix()] = problem
    return wrong


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _leaves(
    directory: Path, *, in_full: bool
) -> tuple[dict[int, Sealed], dict[str, str]]:
    """Reads what is recorded with every step, and finds what is damaged in it."""
    found, wrong = {}, {}
    for step in step_folder.steps(directory / CHECKPOINTS):
        folder = directory / CHECKPOINTS / str(step)
        name = f"{CHECKPOINTS}/{step}"
        try:
            if in_full:
                differences = manifest.differences(folder, manifest.read(folder))
                wrong |= {f"{name}/{one}": what for one, what in differences.items()}
            found[step] = step_folder.read_leaves(folder)
        except manifest.DamagedFileError as error:
            is_there = (folder / step_folder.LEAVES).exists()
            for one in error.names if in_full or is_there else ():
                wrong.setdefault(f"{name}/{one}", str(error))
        except FileNotFoundError:
            continue  # it was removed meanwhile, by the run that goes on
        except (step_folder.FormatError, OSError) as error:
            wrong[name] = str(error)
    return found, wrong


def _cross_check(
    directory: Path,
    leaves: Mapping[int, Sealed],
    steps: Mapping[str, list[int]],
    summary: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Compares what several files say of the same thing."""
    wrong = {}
    lost = _lost(leaves, summary)
    for step, one in leaves.items():
        difference = step_difference(directory, one)
        if difference is not None:
            wrong[f"{CHECKPOINTS}/{step}"] = difference
        for name, lines in ({} if one.links is None else one.links.lines).items():
            count = sum(number <= step for number in steps[name])
            if count + lost[name] < lines:
                wrong[name] = (
                    f"has {count} lines up to step {step}; there were {lines} when"
                    " that step was saved"
                )
    if summary is None:
        return wrong
    for name, lines in summary.get("lines", {}).items():
        if len(steps[name]) != lines:
            wrong[name] = f"has {len(steps[name])} lines, {SUMMARY} says {lines}"
    last, saved = summary.get("step"), step_folder.steps(directory / CHECKPOINTS)
    if last is not None and last not in saved:
        wrong[f"{CHECKPOINTS}/{last}"] = (
            f"is missing or has no seal; {SUMMARY} says that it is the last state"
        )
    elif last is not None and last in leaves:
        found = digests.digest_of(leaves[last].records)
        if found != summary["state_sha256"]:
            wrong[SUMMARY] = (
                f"says sha256 {summary['state_sha256'][:12]} of the last state, which"
                f" is {found[:12]}"
            )
    for step in [one for one in saved if last is None or one > last]:
        wrong[f"{CHECKPOINTS}/{step}"] = f"is later than the end in {SUMMARY}"
    return wrong


def _lost(
    leaves: Mapping[int, Sealed], summary: Mapping[str, Any] | None
) -> dict[str, int]:
    """Returns how many lines were known to be lost when the run was resumed."""
    told = [one.links.missing for one in leaves.values() if one.links is not None]
    told += [] if summary is None else [summary.get("missing", {})]
    return {
        one: max((t.get(one, 0) for t in told), default=0) for one in (METRICS, DIGESTS)
    }


def _known_digests(directory: Path) -> dict[int, str]:
    lines = metrics.read(directory / DIGESTS, skip_broken=True)
    return {line["step"]: str(line.get("sha256")) for line in lines}
