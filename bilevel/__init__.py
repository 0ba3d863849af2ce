"""Bilevel optimisation in JAX: an argmin, and rules that pull gradients through it.

min over x of F(w*(x), x)     where   w*(x) = argmin over w of G(w, x)
"""

import importlib
from typing import TYPE_CHECKING, Any

from bilevel import hypergradients as hypergradients
from bilevel import inner_solvers as inner_solvers
from bilevel import linear_solvers as linear_solvers
from bilevel import preconditioners as preconditioners
from bilevel import samplers as samplers
from bilevel import solvers as solvers
from bilevel.argmin import argmin as argmin
from bilevel.iteration import iterate as iterate
from bilevel.iteration import iterate_until as iterate_until
from bilevel.problem import Batches as Batches
from bilevel.problem import Problem as Problem
from bilevel.problem import Samples as Samples
from bilevel.run import run as run
from bilevel.value_and_hypergradient import (
    value_and_hypergradient as value_and_hypergradient,
)

if TYPE_CHECKING:
    from bilevel import energy as energy
    from bilevel import number_formats as number_formats
    from bilevel import quantized as quantized
    from bilevel.experiments.launch import launch as launch
    from bilevel.experiments.loaded import load_run as load_run

__all__ = [
    "Batches",
    "Problem",
    "Samples",
    "argmin",
    "energy",
    "hypergradients",
    "inner_solvers",
    "iterate",
    "iterate_until",
    "launch",
    "linear_solvers",
    "load_run",
    "number_formats",
    "preconditioners",
    "quantized",
    "run",
    "samplers",
    "solvers",
    "value_and_hypergradient",
]


# Imported when asked for: packages that need flax, and functions that launch programs.
_PACKAGES = ("energy", "number_formats", "quantized")
_FUNCTIONS = {
    "launch": "bilevel.experiments.launch",
    "load_run": "bilevel.experiments.loaded",
}

if not TYPE_CHECKING:  # to a type checker it would give the package any attribute

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first asked for."""
        if name in _PACKAGES:
            return importlib.import_module(f"bilevel.{name}")
        if name in _FUNCTIONS:
            value = getattr(importlib.import_module(_FUNCTIONS[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'bilevel' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
