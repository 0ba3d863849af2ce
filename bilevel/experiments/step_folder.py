"""What is ours in the folder of a checkpoint, `ckpt/<step>/`; Orbax writes the rest.

    leaves.json   step, metric, of every leaf dtype, shape and sha256, and what ties the
                  step to its run
    SHA256SUMS    the sha256 of every file, written last and by a rename

A folder without SHA256SUMS counts as unsaved: the save was cut short, or a copy of the
folder was. It is never deleted, for it may hold data; it is set aside.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.datasets import files, manifest
from bilevel.datasets.manifest import DamagedFileError
from bilevel.experiments import metrics
from bilevel.experiments.digests import LeafRecord

LEAVES = "leaves.json"
_FORMAT = 2
_SMALL = 1 << 20  # bytes of a file that is read to the end without a second thought


class FormatError(ValueError):
    """A checkpoint was written by another version of bilevel."""


class Links(NamedTuple):
    """What ties a step to the rest of its run.

    Attributes:
      lines: `{file: number of lines}` of the metrics and digests when it was saved.
      missing: `{file: number of lines}` that were known to be lost by then.
      parent: `(step, sha256)` of the state that was saved before; None of the first.
    """

    lines: dict[str, int]
    missing: dict[str, int]
    parent: tuple[int, str] | None


class Sealed(NamedTuple):
    """What leaves.json says.

    Attributes:
      step: of the checkpoint.
      metric: lower is better; None if none was given.
      records: `{name of the leaf: LeafRecord}`.
      links: None where they were not recorded.
    """

    step: int
    metric: float | None
    records: dict[str, LeafRecord]
    links: Links | None


def seal(
    folder: Path,
    records: Mapping[str, LeafRecord],
    metric: float | None = None,
    links: Links | None = None,
) -> None:
    """Makes a complete save count, once all of it is on the disk.

    Args:
      folder: of the step, all of Orbax's files in it.
      records: of the leaves.
      metric: lower is better.
      links: to the rest of the run.

    Raises:
      OSError: the files cannot be written.
    """
    content = {
        "format_version": _FORMAT,
        "step": int(folder.name),
        "metric": metric,
        **({} if links is None else {"links": links._asdict()}),
        "leaves": {name: list(record) for name, record in records.items()},
    }
    files.replace_text(folder / LEAVES, json.dumps(content, indent=1) + "\n")
    # A power cut must not leave a seal on files that were not yet written.
    for one in [*folder.rglob("*"), folder, folder.parent]:
        files.sync(one)
    manifest.write(folder, _files(folder))


def steps(directory: Path) -> list[int]:
    """Returns the steps that are saved in a folder of checkpoints, in order."""
    found = (one.parent for one in directory.glob(f"*/{manifest.NAME}"))
    return sorted(int(one.name) for one in found if _is_step(one))


def latest_step(directory: Path) -> int | None:
    """Returns the last step that is saved, or None."""
    return max(steps(directory), default=None)


def read(folder: Path) -> Sealed:
    """Verifies every file of a step, and returns what is recorded of it.

    Raises:
      DamagedFileError: files are missing or changed; they are named.
      FormatError: another version of bilevel wrote it.
      OSError: it cannot be read.
    """
    manifest.check(folder)
    return read_leaves(folder)


def read_leaves(folder: Path) -> Sealed:
    """Returns what is recorded of a step, leaves.json alone verified.

    Raises:
      DamagedFileError: it is missing or changed, or of another step.
      FormatError: another version of bilevel wrote it.
      OSError: it cannot be read.
    """
    listed = manifest.read(folder)
    if LEAVES not in listed:
        raise DamagedFileError(f"{folder} has no checksum of {LEAVES}", [LEAVES])
    manifest.check(folder, {LEAVES: listed[LEAVES]})
    content = json.loads((folder / LEAVES).read_text())
    if content["format_version"] != _FORMAT:
        raise FormatError(
            f"checkpoint {folder} has format {content['format_version']}; this version"
            f" of bilevel reads {_FORMAT}"
        )
    if content["step"] != int(folder.name):
        raise DamagedFileError(
            f"{folder / LEAVES} is of step {content['step']}, not of this one",
            [LEAVES],
        )
    records = {
        name: LeafRecord(dtype, tuple(shape), sha256, key)
        for name, (dtype, shape, sha256, key) in content["leaves"].items()
    }
    links = _links(content.get("links"))
    return Sealed(content["step"], content["metric"], records, links)


def _links(stored: Mapping[str, Any] | None) -> Links | None:
    if stored is None:
        return None
    parent = stored["parent"] and (stored["parent"][0], stored["parent"][1])
    return Links(stored["lines"], stored["missing"], parent)


def check_small_files(folder: Path) -> None:
    """Verifies the files below a megabyte, which Orbax reads of every step.

    Raises:
      DamagedFileError: files are missing or changed; they are named.
    """
    listed = manifest.read(folder).items()
    small = {name: digest for name, digest in listed if _is_small(folder / name)}
    manifest.check(folder, small)


def _is_small(path: Path) -> bool:
    return not path.is_file() or path.stat().st_size < _SMALL


def best_step(directory: Path) -> int | None:
    """Returns the saved step with the lowest metric, or None if none has one.

    Only leaves.json is read, and verified; a step of which it is damaged has none.
    """
    found = [(intact_leaves(directory / str(one)), one) for one in steps(directory)]
    ranked = [
        (leaves.metric, step)
        for leaves, step in found
        if leaves is not None and leaves.metric is not None
    ]
    return min(ranked)[1] if ranked else None


def intact_leaves(folder: Path) -> Sealed | None:
    """Returns what `read_leaves` does, None where it raises."""
    try:
        return read_leaves(folder)
    except (DamagedFileError, FormatError, OSError):
        return None


def unsealed(directory: Path) -> list[Path]:
    """Returns the folders of steps without a list of checksums, in order."""
    found = [one for one in directory.glob("*") if _is_step(one)]
    bare = [one for one in found if not (one / manifest.NAME).exists()]
    return sorted(bare, key=lambda one: int(one.name))


def is_marked(folder: Path, mark: str) -> bool:
    """Says whether a text stands in Orbax's metadata of a step."""
    record = folder / "_CHECKPOINT_METADATA"
    return record.is_file() and mark in record.read_text(errors="replace")


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
