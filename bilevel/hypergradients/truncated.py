"""Truncated back-propagation: through the last steps of the inner solver."""

from collections.abc import Callable
from typing import Any

import jax

from bilevel import checks
from bilevel.hypergradients.attach import by_program, detached
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
from bilevel.hypergradients.unrolled import check_rematerialize, run_steps
from bilevel.inner_solvers.base import InnerInfo
from bilevel.iteration import Rematerialize
from bilevel.trees import Tree


def truncated(
    num_steps: int, *, rematerialize: Rematerialize = "none"
) -> Hypergradient:
    """Differentiates the last `num_steps` of the inner solver's `max_steps` steps.

    Back-propagating k steps of gradient descent from the minimiser gives the Neumann
    series with k terms: the error falls like (1 - a mu)^k, a the step size.  Memory and
    the backward pass cost k steps instead of all.  The initial point gets no gradient
    (asking for one raises).

    Args:
        num_steps: k, between 1 and the solver's `max_steps`.
        rematerialize: as in `unrolled`.

    Returns:
        A `Hypergradient`.  Cost: the solve, and 2 g for each of the k steps.

    What `trustworthy` promises: the relative error against the derivative of the
    argmin, bias of the truncation included, is at most `rtol`.  Under `jax.grad` only
    convergence of the forward pass is watched: the bias is the caller's choice of k.

    Raises:
        ValueError: `num_steps` out of range; a solver with loops in its steps.

    Source: Shaban et al. 2019, arXiv:1810.10667, section 3.

    Example:
        >>> rule = truncated(20)
    """
    check_rematerialize("truncated", rematerialize)
    num_steps = checks.count("truncated: num_steps", num_steps, 1)

    def run(
        problem: InnerProblem, inner0: Tree, theta: Theta
    ) -> tuple[Tree, InnerInfo]:
        before = problem.solver.max_steps - num_steps
        if before < 0:
            raise ValueError(
                f"truncated: num_steps={num_steps} exceeds the inner solver's "
                f"max_steps={problem.solver.max_steps}."
            )
        return run_steps(
            problem,
            detached(inner0, "truncated"),
            theta,
            num_steps=num_steps,
            detached_steps=before,
            rematerialize=rematerialize,
        )

    def forward(
        problem: InnerProblem, inner0: Tree, active: Active
    ) -> tuple[Tree, InnerInfo, Any]:
        def of_active(values: Tree) -> tuple[Tree, InnerInfo]:
            return run(problem, inner0, active.build(values))

        inner, pull, info = jax.vjp(of_active, active.values, has_aux=True)
        return inner, info, pull

    def pullback(
        problem: InnerProblem,
        inner: Tree,
        active: Active,
        saved: Any,
        outer: Outer,
        memory: Any,
    ) -> Pullback:
        del problem, active, memory
        return Pullback(saved(outer.cotangent)[0], plain_info())

    def attach(
        problem: InnerProblem, readout: Any, trust: Trust
    ) -> Callable[[Tree, Theta], tuple[Tree, InnerInfo]]:
        del readout
        return by_program(lambda w, theta: run(problem, w, theta), trust, "truncated")

    return Hypergradient(
        name="truncated",
        init=no_memory,
        forward=forward,
        pullback=pullback,
        attach=attach,
    )
