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

StrPath = str | os.PathLike[str]

_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(\[[^]]*\])?\s*==\s*(?P<version>[^\s;]+)\s*(;.*)?"
)


class Mismatch(NamedTuple):
    """A package that runs in another version than the lock file says.

    Attributes:
      name: of the package, normalised.
      locked: the version in the lock file (several, joined by ' or ', where markers
        could not be evaluated).
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
            found.setdefault(normalised(one.metadata["Name"]), one.version)
    return dict(sorted(found.items()))


def read_lock(path: StrPath) -> dict[str, tuple[str, ...]]:
    """Returns `{normalised name: versions}` that a lock file allows here.

    Lines whose environment marker does not hold for this interpreter are left out.
    Without the package `packaging` markers cannot be evaluated, and all versions of a
    name are returned.

    Args:
      path: the lock file.

    Raises:
      OSError: the file cannot be read.
      LockError: a line is no pin.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in _lines(Path(path).read_text()):
        pin = re.sub(r"(^|\s)#.*|\s--hash=\S+", "", line).strip()
        if not pin:
            continue
        match = _PIN.fullmatch(pin)
        if match is None:
            raise LockError(
                f"{path}, line {number}: expected 'name==version ; marker', got"
                f" {line.strip()!r}"
            )
        try:
            holds = _holds(pin)
        except ValueError as error:
            raise LockError(f"{path}, line {number}: {error}") from error
        if holds:
            name, version = normalised(match["name"]), match["version"]
            found[name] = (*found.get(name, ()), version)
    return found


def mismatches(
    lock: StrPath, running: Mapping[str, str] | None = None
) -> list[Mismatch]:
    """Lists the packages that are not installed in the version of a lock file.

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
        Mismatch(name, " or ".join(allowed), versions.get(name))
        for name, allowed in sorted(read_lock(lock).items())
        if versions.get(name) not in allowed
    ]


def normalised(name: str) -> str:
    """Returns a package's name as the index spells it (PEP 503).

    Example:
      >>> normalised("Orbax_Checkpoint")
      'orbax-checkpoint'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the lines, continued ones joined, with the number of the first."""
    start, joined = 1, ""
    for number, line in enumerate(text.splitlines(), start=1):
        joined += line.removesuffix("\\") + " "
        if not line.endswith("\\"):
            yield start, joined
            start, joined = number + 1, ""
    yield start, joined


def _holds(pin: str) -> bool:
    """Evaluates the environment marker of a line."""
    _, _, marker = pin.partition(";")
    if not marker.strip():
        return True
    try:
        from packaging.markers import Marker
    except ImportError:  # it comes with the development tools
        return True
    return Marker(marker.strip()).evaluate()
