"""Solvers of A u = b for a matrix-free A on pytrees, with honest reports."""

from bilevel.linear_solvers.base import LinearInfo as LinearInfo
from bilevel.linear_solvers.base import LinearSolver as LinearSolver
from bilevel.linear_solvers.cg import cg as cg
from bilevel.linear_solvers.default import default_for as default_for
from bilevel.linear_solvers.dense import dense as dense
from bilevel.linear_solvers.neumann import neumann as neumann
from bilevel.linear_solvers.normal_cg import normal_cg as normal_cg

__all__ = [
    "LinearInfo",
    "LinearSolver",
    "cg",
    "default_for",
    "dense",
    "neumann",
    "normal_cg",
]
