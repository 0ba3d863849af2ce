"""What NumPy's numbers depend on: SIMD features, BLAS, and variables that choose them.

Data, splits and margins are often computed by NumPy, and one variable is enough to move
its bits: OPENBLAS_CORETYPE those of products and singular values,
NPY_DISABLE_CPU_FEATURES those of exp and tanh.
"""

import hashlib
import os
import sys
from typing import Any

import numpy as np

from bilevel.experiments import redaction

VARIABLES = (
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "GLIBC_TUNABLES",
)
"""Variables that choose instructions: with another value, numbers are other ones."""

PREFIXES = ("OPENBLAS_", "NPY_", "MKL_", "OMP_", "KMP_", "BLIS_", "GOTO_")
"""How the variables begin that NumPy and its libraries read."""


def variables() -> dict[str, str]:
    """Returns the environment variables that NumPy and its BLAS read, those set."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name in VARIABLES or name.startswith(PREFIXES)
        if not redaction.is_secret_name(name)
    }


def record() -> dict[str, str]:
    """Describes NumPy's arithmetic: SIMD features in use, BLAS, bits of results.

    Cost: some milliseconds.

    Returns:
      `bits` are the first 12 hex digits of the SHA-256 of products, singular values and
      elementary functions. Which cores and versions have equal ones cannot be told
      beforehand: they are for comparison with another record.
    """
    config: Any = np.show_config(mode="dicts")
    simd = config.get("SIMD Extensions", {})
    blas = config.get("Build Dependencies", {}).get("blas", {})
    used = [*simd.get("baseline", []), *simd.get("found", [])]
    return {
        "simd": " ".join(used),
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "libraries": "; ".join(_libraries()),
        "bits": bits(),
    }


def str_hash() -> str:
    """Says whether sets of strings have the same order in every process."""
    return "random" if sys.flags.hash_randomization else "fixed"


def results() -> np.ndarray:
    """Computes a few numbers with NumPy, of size one, float64 `[48]`."""
    matrix, points = _inputs()
    singular = np.linalg.svd(matrix, compute_uv=False)[:16]
    return np.concatenate(
        [
            (matrix @ matrix.T)[0, :16],
            singular,
            np.exp(-points[:8]),
            np.tanh(points[:8]),
        ]
    )


def bits() -> str:
    """Returns the first 12 hex digits of the SHA-256 of results of NumPy."""
    matrix, points = _inputs()
    narrow = points.astype(np.float32)
    functions = (np.exp, np.tanh, np.sin, np.log1p, np.sqrt)
    found = [
        matrix @ matrix.T,
        matrix.astype(np.float32) @ matrix.T.astype(np.float32),
        np.linalg.svd(matrix, compute_uv=False),
        matrix.sum(0),
        np.exp(matrix).sum(),
        *(function(x) for function in functions for x in (points, narrow)),
    ]
    digest = hashlib.sha256()
    for one in found:
        digest.update(np.ascontiguousarray(one).tobytes())
    return digest.hexdigest()[:12]


def _inputs() -> tuple[np.ndarray, np.ndarray]:
    """A matrix `[64, 64]` and points `[1000]` of size one, no sums of powers of two."""
    index = np.arange(64)
    whole = (index[:, None] * 37 + index * index * 11 + index[:, None] * index) % 101
    return (whole - 50) / 300, np.arange(1000) / 237


def _libraries() -> list[str]:
    """Describes the BLAS libraries of this process, if threadpoolctl is there."""
    try:
        import threadpoolctl
    except ImportError:
        return []
    names = ("internal_api", "version", "architecture", "threading_layer")
    return sorted(
        " ".join(str(one[name]) for name in names if one.get(name))
        + f" {one['num_threads']} threads"
        for one in threadpoolctl.threadpool_info()
    )
