"""The members of `examples/extending`, which the contract suites have in their lists.

Each is one file that changes no other: what an outsider writes.
"""

import importlib.util
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples" / "extending"


def _load(name: str) -> Any:
    """The factory of the name of its file."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


finite_difference = _load("finite_difference")
minres = _load("minres")
three_batches = _load("three_batches")
