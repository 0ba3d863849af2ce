"""Outer algorithms: `init` and `update`, pure functions over one pytree of state."""

from bilevel.solvers.two_loop import TwoLoopInfo as TwoLoopInfo
from bilevel.solvers.two_loop import TwoLoopState as TwoLoopState
from bilevel.solvers.two_loop import two_loop as two_loop

__all__ = ["TwoLoopInfo", "TwoLoopState", "two_loop"]
