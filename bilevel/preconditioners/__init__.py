"""Approximate inverses of the inner Hessian, shared by all that is solved with it."""

from bilevel.inner_problem import Preconditioner as Preconditioner
from bilevel.preconditioners.from_function import from_function as from_function
from bilevel.preconditioners.jacobi import jacobi as jacobi
from bilevel.preconditioners.kronecker import kronecker as kronecker
from bilevel.preconditioners.limited_memory import limited_memory as limited_memory
from bilevel.preconditioners.nystrom import nystrom as nystrom

__all__ = [
    "Preconditioner",
    "from_function",
    "jacobi",
    "kronecker",
    "limited_memory",
    "nystrom",
]
