"""One-step differentiation (Jacobian-free back-propagation)."""

from typing import Any

import jax

from bilevel.hypergradients.base import OuterObjective, Pullback, Solved, plain_info
from bilevel.hypergradients.rule import Hypergradient
from bilevel.trees import Tree


def one_step() -> Hypergradient:
    """Differentiates one more step U of the inner solver, taken at the solution.

    The pull-back is (dU/dx)' v: for gradient descent with step size a it is -a J' v,
    the inverse Hessian replaced by a I.  Its error relative to the exact Jacobian is
    about |dU/dw| (1 - 1/kappa for gradient descent), so it may even point uphill; for
    solvers that converge fast it is nearly exact.

    Returns:
        A `Hypergradient`.  Cost: 1.5 g.

    What `trustworthy` promises: the relative error against the derivative of the
    argmin, bias included, is at most `rtol`; for gradient descent that is rare.

    Raises:
        ValueError: a solver with loops in its steps (newton, lbfgs).

    Source: Bolte, Pauwels and Vaiter 2023, "One-step differentiation of iterative
    algorithms", section 2.

    Example:
        >>> rule = one_step()
    """
    return Hypergradient("one_step", _pullback)


def _pullback(
    solved: Solved, outer_objective: OuterObjective, warm_start: Any
) -> Pullback:
    del warm_start
    problem, inner = solved.problem, solved.inner
    solver, oracle = problem.solver, problem.oracle
    if not solver.reverse_differentiable:
        raise ValueError(
            "one_step cannot differentiate a step of this inner solver, which "
            "contains loops (a line search, CG). Use hypergradients.implicit(), or "
            "inner_solvers.gradient_descent."
        )

    def step(values: Tree) -> Tree:
        parameters = solved.differentiated.build(values)
        state = solver.init(oracle, inner, parameters)
        return solver.step(oracle, inner, state, parameters)[0]

    pull = jax.vjp(step, solved.differentiated.values)[1]
    return Pullback(pull(outer_objective.cotangent)[0], plain_info())
