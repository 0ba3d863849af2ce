"""data.json: which arrays a run has used, so that it is resumed with no others."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from bilevel.datasets import manifest
from bilevel.experiments import digests, folders
from bilevel.experiments.folders import DATA, Folder, FolderError

Tree: TypeAlias = Any


def record(folder: Folder, arrays: Mapping[str, Tree], seed: int | None) -> None:
    """Adds arrays to data.json.

    Raises:
      FolderError: they are recorded with other content.
    """
    path = folder.path / DATA
    stored = json.loads(path.read_text()) if path.exists() else {}
    found = {
        f"{name}{leaf}": manifest.fingerprint(_as_it_is(value))
        | ({} if seed is None else {"split_seed": seed})
        for name, tree in arrays.items()
        for leaf, value in digests.named_leaves(tree).items()
    }
    changed = [
        f"{name}: {stored[name]} -> {one}"
        for name, one in found.items()
        if name in stored and stored[name] != one
    ]
    if changed:
        lines = "\n  ".join(changed)
        raise FolderError(
            f"the data of the run in {path.parent} have changed:\n  {lines}\n"
            "restore them, or give another --workdir"
        )
    if found.items() <= stored.items():
        return
    if folders.is_finished(folder.path):
        new = ", ".join(sorted(found.keys() - stored.keys()))
        raise FolderError(f"the run in {folder.path} is finished; it has no data {new}")
    text = json.dumps({**stored, **found}, indent=1, sort_keys=True) + "\n"
    folder.replace(DATA, text)


def _as_it_is(value: Any) -> Any:
    """An array in its own type: JAX would narrow 64 bits, and miss a difference."""
    return value if isinstance(value, np.ndarray) else digests.data_of(value)
