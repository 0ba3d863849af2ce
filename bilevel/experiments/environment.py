"""The environment of a run, and the one test that notices when it changes.

In a repository of your own:

    from bilevel.experiments import environment

    def test_environment():
        environment.check("requirements.lock", "fingerprint.json")

where `python -m bilevel environment --write=fingerprint.json` wrote the golden file.
"""

import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bilevel.experiments import fingerprint, host_numerics, versions
from bilevel.experiments.versions import StrPath

__all__ = [
    "EnvironmentDrift",
    "EnvironmentMismatch",
    "Report",
    "check",
    "compare",
    "difference",
    "find_lock",
    "record",
]

# By name, never all of them: environments hold passwords. `host_numerics` adds those of
# NumPy's libraries.
_VARIABLES = (
    "NPROC",
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_TF32_OVERRIDE",
    "TF_CPP_MIN_LOG_LEVEL",
    "TF_CUDNN_DETERMINISTIC",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "PYTHONHASHSEED",
)


class EnvironmentDrift(UserWarning):
    """Packages run in other versions than the lock file says."""


class EnvironmentMismatch(AssertionError):
    """Numbers are not what they were; the message names what moved."""


class Report(NamedTuple):
    """What `compare` found.

    Attributes:
      drift: packages in other versions, one line each.
      missing: locked packages that are not installed: information, not drift.
      problems: flags that moved and numbers that changed, one line each.
    """

    drift: list[str]
    missing: list[str]
    problems: list[str]


def check(
    lock: StrPath = "requirements.lock",
    golden: StrPath = fingerprint.GOLDEN,
    *,
    strict: bool = False,
) -> Report:
    """Warns of other package versions; fails if flags or numbers have changed.

    Cost: two seconds, most of them the import of flax and optax.

    Args:
      lock: the lock file.
      golden: the golden file of the numbers, default that of this package.
      strict: fail on package versions too.

    Returns:
      The report of `compare`.

    Warns:
      EnvironmentDrift: packages in other versions.

    Raises:
      EnvironmentMismatch: a flag moved, or a number changed; each is named.
      OSError, ValueError: a file is missing or damaged.
    """
    report = compare(lock, golden)
    if report.drift and not strict:
        warnings.warn(EnvironmentDrift(_drift_message(lock, report)), stacklevel=2)
    wrong = [*(report.drift if strict else []), *report.problems]
    if wrong:
        raise EnvironmentMismatch("\n  ".join(["the environment has changed:", *wrong]))
    return report


def compare(
    lock: StrPath | None = None, golden: StrPath | None = fingerprint.GOLDEN
) -> Report:
    """Compares packages with a lock file, and flags and numbers with a golden file.

    Args:
      lock: the lock file; None leaves this out.
      golden: the golden file; None leaves this out.

    Raises:
      OSError, ValueError: a file is missing or damaged.
    """
    found = [] if lock is None else versions.mismatches(lock)
    return Report(
        drift=[str(one) for one in found if one.running is not None],
        missing=[one.name for one in found if one.running is None],
        problems=[]
        if golden is None
        else fingerprint.problems(fingerprint.read(golden)),
    )


def find_lock(program: StrPath) -> Path | None:
    """Returns the nearest `requirements.lock` above a program, or None."""
    for folder in Path(program).resolve().parents:
        if (folder / "requirements.lock").is_file():
            return folder / "requirements.lock"
    return None


def record(lock: StrPath | None = None) -> dict[str, Any]:
    """Describes the environment in JSON; this starts JAX's backend.

    Packages, flags of JAX, environment variables from a fixed list, threads, devices,
    CPU, NumPy's SIMD features, BLAS and bits, whether the order of sets is random, the
    differences from the lock file, and the random bits of the fingerprint.

    Cost: half a second, most of it the compilation of the fingerprint.

    Args:
      lock: the lock file, or None.

    Raises:
      OSError, ValueError: the lock file is missing or damaged.
    """
    golden = fingerprint.read().items
    exact = fingerprint.compute(["exact"])
    expected = {name: golden[name] for name in exact}
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": num_cores(),
        "threads": num_threads(),
        "backend": jax.default_backend(),
        "devices": [one.device_kind for one in devices],
        "processes": jax.process_count(),
        "packages": versions.installed(),
        "lock": None if lock is None else _lock_record(lock),
        "jax": _jax_flags(),
        "variables": _variables(),
        "numpy": host_numerics.record(),
        "str_hash": host_numerics.str_hash(),
        "random_numbers": fingerprint.difference(expected, exact) or "as expected",
    }


# What may change bits, from the likeliest to the least likely.
_COMPARED = (
    "threads",
    "packages",
    "jax",
    "variables",
    "numpy",
    "str_hash",
    "backend",
    "devices",
    "processes",
    "random_numbers",
    "cpu",
    "machine",
    "python",
)


def difference(
    before: dict[str, Any], now: dict[str, Any], names: Sequence[str] = _COMPARED
) -> list[str]:
    """Lists what differs between two records, the likeliest cause first.

    Args:
      before: from `record`.
      now: another one.
      names: the entries to compare.

    Example:
      >>> difference({"threads": 2, "jax": {"x": 1}}, {"threads": 1, "jax": {"x": 1}})
      ['threads: 2 -> 1']
    """
    lines = []
    for name in names:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            # Flags come and go with versions of JAX; that is no change of a flag.
            keys = old.keys() & new.keys() if name == "jax" else old.keys() | new.keys()
            lines += [
                f"{_SINGULAR[name]} {key}: {old.get(key)} -> {new.get(key)}"
                for key in sorted(keys, key=lambda key: (key not in _NUMERICAL, key))
                if old.get(key) != new.get(key)
            ]
        elif old != new:
            lines.append(f"{name}: {old} -> {new}")
    return lines


# The packages that compute numbers; listed first.
_NUMERICAL = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "bilevel", "chex")
_SINGULAR = {
    "packages": "package",
    "jax": "flag",
    "variables": "variable",
    "numpy": "numpy",
}


def num_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads() -> int:
    """Returns the number of threads that XLA computes with on a CPU."""
    # XLA reads NPROC when its client starts; it splits matrix products accordingly,
    # and with them the order of sums.
    text = os.environ.get("NPROC", "")
    return int(text) if text.isdecimal() and int(text) > 0 else num_cores()


def cpu_model() -> str:
    """Returns the name of the CPU, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [one.partition(":")[2].strip() for one in lines if "model name" in one]
    return names[0] if names else platform.processor()


def _variables() -> dict[str, str]:
    """Returns the environment variables that are recorded."""
    flags = (name.upper() for name in jax.config.values if name.startswith("jax_"))
    names = (*_VARIABLES, *sorted(flags))
    found = {name: os.environ[name] for name in names if name in os.environ}
    return found | host_numerics.variables()


def _jax_flags() -> dict[str, Any]:
    # What holds now, also inside of `with jax.enable_x64(...)`.
    values = {name: getattr(jax.config, name, None) for name in jax.config.values}
    plain = bool | int | float | str | None
    return {
        name: value if isinstance(value, plain) else str(value)
        for name, value in sorted(values.items())
    }


def _lock_record(lock: StrPath) -> dict[str, Any]:
    report = compare(lock, None)
    return {
        "file": Path(lock).name,
        "sha256": hashlib.sha256(Path(lock).read_bytes()).hexdigest(),
        "mismatches": report.drift,
        "missing": report.missing,
    }


def _drift_message(lock: StrPath, report: Report) -> str:
    command = f"{Path(sys.executable).name} -m pip install -r {Path(lock).name}"
    lines = [f"packages differ from {Path(lock).name} ('{command}' installs it):"]
    return "\n  ".join([*lines, *report.drift])
