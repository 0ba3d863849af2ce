"""One-step differentiation (Jacobian-free back-propagation)."""

from collections.abc import Callable
from typing import Any

import jax

from bilevel.hypergradients.attach import by_pullback
from bilevel.hypergradients.base import (
    Active,
    Hypergradient,
    InnerProblem,
    Outer,
    Pullback,
    Theta,
    Trust,
    no_memory,
    plain_info,
)
from bilevel.hypergradients.implicit import implicit_forward
from bilevel.inner_solvers.base import InnerInfo
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

    def pullback(
        problem: InnerProblem,
        inner: Tree,
        active: Active,
        saved: Any,
        outer: Outer,
        memory: Any,
    ) -> Pullback:
        del saved, memory
        solver, oracle = problem
        if not solver.reverse_differentiable:
            raise ValueError(
                "one_step cannot differentiate a step of this inner solver, which "
                "contains loops (a line search, CG). Use hypergradients.implicit(), or "
                "inner_solvers.gradient_descent."
            )

        def step(values: Tree) -> Tree:
            theta = active.build(values)
            return solver.step(oracle, inner, solver.init(oracle, inner, theta), theta)[
                0
            ]

        cotangent = jax.vjp(step, active.values)[1](outer.cotangent)[0]
        return Pullback(cotangent, plain_info())

    def attach(
        problem: InnerProblem, readout: Any, trust: Trust
    ) -> Callable[[Tree, Theta], tuple[Tree, InnerInfo]]:
        return by_pullback(rule, problem, readout, trust)

    rule = Hypergradient(
        name="one_step",
        init=no_memory,
        forward=implicit_forward,
        pullback=pullback,
        attach=attach,
    )
    return rule
