"""What is ours in the folder of a checkpoint, `ckpt/<step>/`; Orbax writes the rest.

    leaves.json   step, metric, and of every leaf dtype, shape and sha256
    SHA256SUMS    the sha256 of every file, written last and by a rename

A folder without SHA256SUMS is of a save that was cut short: it counts as unsaved.
"""

import json
import math
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.datasets import manifest
from bilevel.experiments import metrics
from bilevel.experiments.digests import LeafRecord

_LEAVES = "leaves.json"
_FORMAT = 2


class FormatError(ValueError):
    """A checkpoint was written by another version of bilevel."""


class Sealed(NamedTuple):
    """What leaves.json says.

    Attributes:
      step: of the checkpoint.
      metric: lower is better; None if none was given.
      records: `{name of the leaf: LeafRecord}`.
    """

    step: int
    metric: float | None
    records: dict[str, LeafRecord]


def seal(
    folder: Path, records: Mapping[str, LeafRecord], metric: float | None = None
) -> None:
    """Makes a complete save count.

    Args:
      folder: of the step, all of Orbax's files in it.
      records: of the leaves.
      metric: lower is better.

    Raises:
      OSError: the files cannot be written.
    """
    content = {
        "format_version": _FORMAT,
        "step": int(folder.name),
        "metric": metric,
        "leaves": {name: list(record) for name, record in records.items()},
    }
    (folder / _LEAVES).write_text(json.dumps(content, indent=1) + "\n")
    manifest.write(folder, _files(folder))


def steps(directory: Path) -> list[int]:
    """Returns the steps that are saved in a folder of checkpoints, in order."""
    found = (one.parent for one in directory.glob(f"*/{manifest.NAME}"))
    return sorted(int(one.name) for one in found if _is_step(one))


def latest_step(directory: Path) -> int | None:
    """Returns the last step that is saved, or None."""
    return max(steps(directory), default=None)


def read(folder: Path) -> Sealed:
    """Verifies every file of a step, and returns what is recorded of its leaves.

    Raises:
      DamagedFileError: files are missing or changed; they are named.
      FormatError: another version of bilevel wrote it.
      OSError: it cannot be read.
    """
    manifest.check(folder)
    content = json.loads((folder / _LEAVES).read_text())
    if content["format_version"] != _FORMAT:
        raise FormatError(
            f"checkpoint {folder} has format {content['format_version']}; this version"
            f" of bilevel reads {_FORMAT}"
        )
    records = {
        name: LeafRecord(dtype, tuple(shape), sha256, key)
        for name, (dtype, shape, sha256, key) in content["leaves"].items()
    }
    return Sealed(content["step"], content["metric"], records)


def best_step(directory: Path) -> int | None:
    """Returns the saved step with the lowest metric, or None if none has one.

    Only leaves.json is read, and verified; a step of which it is damaged has none.
    """
    found = [(_metric(directory / str(step)), step) for step in steps(directory)]
    ranked = [(metric, step) for metric, step in found if metric is not None]
    return min(ranked)[1] if ranked else None


def _metric(folder: Path) -> float | None:
    try:
        manifest.check(folder, {_LEAVES: manifest.read(folder)[_LEAVES]})
        return json.loads((folder / _LEAVES).read_text())["metric"]
    except (manifest.DamagedFileError, OSError, KeyError):
        return None


def remove_unsaved(directory: Path, mark: str | None) -> list[Path]:
    """Removes the folders of saves that were cut short after Orbax was done.

    Args:
      directory: of the checkpoints.
      mark: a text in Orbax's metadata of every step that may be removed; None: all of
        them may be.

    Returns:
      Folders without a list of checksums that lack the mark: they stay.
    """
    foreign = []
    for one in directory.glob("*"):
        if not _is_step(one) or (one / manifest.NAME).exists():
            continue
        record = one / "_CHECKPOINT_METADATA"
        if mark is None or (
            record.is_file() and mark in record.read_text(errors="replace")
        ):
            _remove(one)
        else:
            foreign.append(one)
    return foreign


def _remove(folder: Path) -> None:
    # A save that goes on in a folder that somebody deleted adds to it meanwhile.
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
    shutil.rmtree(folder)


def set_aside(directory: Path, after: int) -> None:
    """Moves the steps after one to the folder `<directory>-set-aside`.

    Nothing is deleted; a second move of a step gets a number.
    """
    aside = directory.with_name(f"{directory.name}-set-aside")
    for step in [one for one in steps(directory) if one > after]:
        target, count = aside / str(step), 1
        while target.exists():
            count += 1
            target = aside / f"{step}-{count}"
        aside.mkdir(exist_ok=True)
        (directory / str(step)).rename(target)


def _is_step(folder: Path) -> bool:
    return re.fullmatch(r"[0-9]+", folder.name) is not None and folder.is_dir()


def _files(folder: Path) -> list[str]:
    """Lists the files of a step, those of Orbax whose names begin with a dot too."""
    names = [
        one.relative_to(folder).as_posix()
        for one in folder.rglob("*")
        if one.is_file() and not one.name.startswith(f".{manifest.NAME}")
    ]
    return [name for name in names if name != manifest.NAME]


def as_metric(value: Any) -> float | None:
    """Returns a metric as a finite number, None where it is none.

    Raises:
      MetricsError: it is no number.
    """
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        message = f"metric: expected one number, got {value!r}"
        raise metrics.MetricsError(message) from error
    return number if math.isfinite(number) else None
