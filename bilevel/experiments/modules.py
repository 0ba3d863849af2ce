"""The code that this process has loaded: files of modules, but for installed ones.

What git sees is not what ran: ignored files, submodules and folders on PYTHONPATH are
imported as well. What is looked at here is `sys.modules`; what a program executes by
other means (`exec`, another process, a library of C) is not in it.
"""

import sys
import sysconfig
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bilevel.datasets import manifest

CONFIG_PREFIX = "bilevel_config_"
"""How modules are named that are configuration files."""

# Installed packages are recorded by name and version.
_INSTALLED = {"site-packages", "dist-packages"}
_SHOWN = 8


def loaded() -> dict[str, Path]:
    """Returns `{module: file}`, each file once; Python's own and installed ones not.

    The paths are resolved; a file that is in a zip file does not exist.
    """
    own = [
        Path(path).resolve()
        for name in ("stdlib", "platstdlib")
        if (path := sysconfig.get_path(name))
    ]
    found: dict[Path, str] = {}
    for name, module in sorted(sys.modules.copy().items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str):
            continue
        path = Path(file).resolve()
        if not (_INSTALLED & {*path.parts} or any(map(path.is_relative_to, own))):
            found.setdefault(path, name)
    return {name: path for path, name in found.items()}


def outside(held: Collection[Path], top: Path | None) -> dict[str, Any]:
    """Lists the modules that are in none of the sources that are recorded.

    Args:
      held: the files of those sources.
      top: files in this folder are named by their path in it.

    Returns:
      `{module: {"file": name, "sha256": 64 hex digits or None}}`, None of a file that
      cannot be read.
    """
    return {
        name: {"file": _name(path, top), "sha256": _sha256(path)}
        for name, path in loaded().items()
        if path not in held
    }


def summary(found: Mapping[str, Any]) -> list[str]:
    """Describes modules in a line for each package."""
    packages: dict[str, list[str]] = {}
    for name, one in found.items():
        packages.setdefault(name.partition(".")[0], []).append(one["file"])
    return [
        f"{name} ({files[0]})" if len(files) == 1 else f"{name} ({len(files)} files)"
        for name, files in packages.items()
    ]


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists the modules that differ, one line each; those with one record in a line.

    Args:
      before: from `outside`.
      now: the same of another process.
    """
    lines = [
        f"code: module {name} sha256 {_short(before[name])} -> {_short(now[name])}"
        for name in sorted(before.keys() & now.keys())
        if before[name]["sha256"] != now[name]["sha256"]
    ]
    for old, new, text in (
        (before, now, "were loaded from outside of the recorded source, now not"),
        (now, before, "are loaded from outside of the recorded source, before not"),
    ):
        names = sorted(old.keys() - new.keys())
        if names:
            lines.append(f"code: modules {listed(names)} {text}")
    return lines


def listed(names: Collection[str]) -> str:
    """Returns the first of some names, and how many others there are."""
    shown = ", ".join([*names][:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _name(path: Path, top: Path | None) -> str:
    is_inside = top is not None and path.is_relative_to(top)
    return path.relative_to(top).as_posix() if is_inside and top else str(path)


def _sha256(path: Path) -> str | None:
    try:
        return manifest.file_sha256(path) if path.is_file() else None
    except OSError:
        return None


def _short(one: Mapping[str, Any]) -> str:
    return one["sha256"][:12] if one["sha256"] else "unknown"
