"""The seal of a finished run: SHA256SUMS, the sha256 of every file in its folder.

    cd runs/a && sha256sum -c SHA256SUMS

It is written before summary.json, whose sha256 is in it: a run that is finished has a
seal, whenever the process was killed. A file that is still being written, as the log
is, has no entry until it is complete.
"""

import contextlib
import hashlib
import os
import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path

from bilevel.datasets import manifest
from bilevel.experiments import folders

NAME = manifest.NAME
ADDED = "is not in the seal: it was added later"
_RECORD = (
    folders.CONFIG,
    folders.SOURCE,
    folders.SUMMARY,
    folders.METRICS,
    folders.DIGESTS,
    folders.DATA,
    folders.CHECKPOINTS,
    "starts",
)


def is_sealed(directory: Path) -> bool:
    """Says whether a folder has a seal."""
    return (directory / NAME).exists()


def write(directory: Path, summary: str, without: Collection[str] = ()) -> None:
    """Seals a folder.

    Cost: reads every file, 0.1 s per 100 MB.

    Args:
      directory: of the run.
      summary: what is written to summary.json next.
      without: files and folders that are still being written.

    Raises:
      OSError: a file cannot be read, or the list not be written.
    """
    names = _files(directory) - {folders.SUMMARY}
    found = _digests(directory, {one for one in names if not _is_in(one, without)})
    found[folders.SUMMARY] = hashlib.sha256(summary.encode()).hexdigest()
    manifest.write_digests(directory, found)


def update(directory: Path, without: Collection[str] = ()) -> None:
    """Adds the files that have no entry, and drops the entries of some.

    Entries that are there stay as they are: damage is not sealed.

    Args:
      directory: of the run; if it has no seal, nothing is done.
      without: files and folders that are being written now.

    Raises:
      OSError: a file cannot be read, or the list not be written.
    """
    if not is_sealed(directory):
        return
    before = manifest.read(directory)
    kept = {name: one for name, one in before.items() if not _is_in(name, without)}
    new = {one for one in _files(directory) - kept.keys() if not _is_in(one, without)}
    if new or kept != before:
        manifest.write_digests(directory, {**kept, **_digests(directory, new)})


@contextlib.contextmanager
def reopened(directory: Path, *names: str) -> Iterator[None]:
    """Lets files of a sealed folder be written: they have no entry meanwhile."""
    update(directory, names)
    try:
        yield
    finally:
        update(directory)


def differences(directory: Path) -> tuple[dict[str, str], list[str]]:
    """Compares a sealed folder with its seal.

    Args:
      directory: of the run.

    Returns:
      `{name: what is wrong}`, and the files that were added without being a part of the
      record of the run.
    """
    try:
        listed = manifest.read(directory)
    except (manifest.DamagedFileError, OSError) as error:
        return {NAME: str(error)}, []
    outside = {one for one in listed if _is_outside(one)}
    inside = {name: one for name, one in listed.items() if name not in outside}
    added = sorted(_files(directory) - listed.keys())
    wrong = dict.fromkeys(outside, "is listed, and lies outside of the folder")
    wrong |= dict.fromkeys((one for one in added if _is_in(one, _RECORD)), ADDED)
    wrong |= manifest.differences(directory, inside)
    return wrong, [one for one in added if one not in wrong]


def _files(directory: Path) -> set[str]:
    """All files but the seal, the lock, and those that are half written."""
    # Links to folders are not followed, but for that to the checkpoints, which may be
    # on a larger disk.
    tops = [
        directory,
        *[one for one in [directory / folders.CHECKPOINTS] if one.is_symlink()],
    ]
    paths = [
        Path(folder, name)
        for top in tops
        for folder, _, names in os.walk(top)
        for name in names
    ]
    found = {one.relative_to(directory).as_posix() for one in paths if one.is_file()}
    half_written = {one for one in found if posixpath.basename(one).endswith(".tmp")}
    return found - half_written - {NAME, folders.LOCK, folders.OWNER}


def _digests(directory: Path, names: Collection[str]) -> dict[str, str]:
    return {one: manifest.file_sha256(directory / one) for one in names}


def _is_in(name: str, parts: Collection[str]) -> bool:
    """Says whether a name is one of some, or in a folder that is."""
    return any(name == part or name.startswith(f"{part}/") for part in parts)


def _is_outside(name: str) -> bool:
    return posixpath.isabs(name) or name.split("/")[0] == ".."
