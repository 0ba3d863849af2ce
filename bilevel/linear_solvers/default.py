"""Which linear solver goes with which matrix."""

from bilevel.inner_problem import Structure
from bilevel.linear_solvers.base import LinearSolver
from bilevel.linear_solvers.cg import cg
from bilevel.linear_solvers.normal_cg import normal_cg


def default_for(structure: Structure) -> LinearSolver:
    """The linear solver that rules take where the user names none.

    Args:
        structure: of the matrix.

    Returns:
        `cg()` for a positive-definite matrix, `normal_cg()` for any other.

    Example:
        >>> default_for("positive_definite").needs
        'positive_definite'
    """
    return cg() if structure == "positive_definite" else normal_cg()
