"""Minimisers of the inner objective; any of them goes with any pull-back rule."""

from bilevel.inner_problem import InnerSolver as InnerSolver
from bilevel.inner_problem import StepInfo as StepInfo
from bilevel.inner_solvers.block_coordinate import block_coordinate as block_coordinate
from bilevel.inner_solvers.closed_form import closed_form as closed_form
from bilevel.inner_solvers.driver import InnerInfo as InnerInfo
from bilevel.inner_solvers.fixed_point import fixed_point as fixed_point
from bilevel.inner_solvers.gradient_descent import gradient_descent as gradient_descent
from bilevel.inner_solvers.lbfgs import lbfgs as lbfgs
from bilevel.inner_solvers.newton import newton as newton

__all__ = [
    "InnerInfo",
    "InnerSolver",
    "StepInfo",
    "block_coordinate",
    "closed_form",
    "fixed_point",
    "gradient_descent",
    "lbfgs",
    "newton",
]
