"""Installed packages, and how they differ from a lock file.

A lock file is a pip constraint file, `name==version ; marker` line by line; hashes,
comments and continued lines are understood.
"""

import importlib.metadata
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

StrPath = str | os.PathLike[str]


class Mismatch(NamedTuple):
    """A package that runs in another version than the lock file says.

    Attributes:
      name: of the package, normalised.
      locked: the version in the lock file.
      running: the installed version, None if it is not installed.
    """

    name: str
    locked: str
    running: str | None

    def __str__(self) -> str:
        return f"{self.name}: locked {self.locked}, running {self.running or 'none'}"


class LockError(ValueError):
    """A lock file has a line that is no pin; the message shows it."""


def installed() -> dict[str, str]:
    """Returns `{normalised name: version}` of the packages of this interpreter."""
    found = {}
    for one in importlib.metadata.distributions():
        # A broken installation has no name, and asking for it is deprecated.
        if "Name" in one.metadata:
            found.setdefault(canonicalize_name(one.metadata["Name"]), one.version)
    return dict(sorted(found.items()))


def read_lock(path: StrPath) -> dict[str, str]:
    """Returns `{normalised name: version}` that a lock file wants here.

    Lines whose environment marker does not hold for this interpreter are left out.

    Args:
      path: the lock file.

    Raises:
      OSError: the file cannot be read.
      LockError: a line is no pin, or a package has two versions here.
    """
    found: dict[str, str] = {}
    for number, line in _lines(Path(path).read_text()):
        text = re.sub(r"(^|\s)#.*|\s--hash=\S+", "", line).strip()
        if not text:
            continue
        pin = _pin(text)
        if pin is None:
            raise LockError(
                f"{path}, line {number}: expected 'name==version ; marker', got"
                f" {line.strip()!r}"
            )
        requirement, version = pin
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name = canonicalize_name(requirement.name)
        if found.setdefault(name, version) != version:
            raise LockError(
                f"{path}, line {number}: {name}=={version}, but it was {found[name]}"
                " before; give the lines markers that exclude one another"
            )
    return found


def mismatches(
    lock: StrPath, running: Mapping[str, str] | None = None
) -> list[Mismatch]:
    """Lists the packages that are not installed in the version of a lock file.

    Versions are compared as pip does: 1.0 is 1.0.0, and 1.0+cuda12 will do for 1.0.

    Args:
      lock: the lock file.
      running: `{name: version}`, by default what is installed.

    Returns:
      Sorted by name; those that are not installed have `running=None`, which is no
      drift: a lock file lists development tools too.

    Raises:
      OSError, LockError: as `read_lock`.
    """
    versions = installed() if running is None else running
    return [
        Mismatch(name, locked, versions.get(name))
        for name, locked in sorted(read_lock(lock).items())
        if not _is_same(locked, versions.get(name))
    ]


def _is_same(locked: str, running: str | None) -> bool:
    if running is None:
        return False
    try:
        return SpecifierSet(f"=={locked}").contains(running, prereleases=True)
    except InvalidVersion:  # a build of one's own may be called anything
        return False


def _pin(text: str) -> tuple[Requirement, str] | None:
    """Returns a requirement of exactly one version, and that version."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    pins = [
        one.version
        for one in requirement.specifier
        if one.operator == "==" and not one.version.endswith("*")
    ]
    is_pin = len(pins) == len(requirement.specifier) == 1 and requirement.url is None
    return (requirement, pins[0]) if is_pin else None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the lines, continued ones joined, with the number of the first."""
    start, joined = 1, ""
    for number, line in enumerate(text.splitlines(), start=1):
        joined += line.removesuffix("\\") + " "
        if not line.endswith("\\"):
            yield start, joined
            start, joined = number + 1, ""
    yield start, joined
