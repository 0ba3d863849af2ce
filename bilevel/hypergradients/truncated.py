"""Truncated back-propagation: through the last steps of the inner solver."""

from functools import partial

from bilevel import checks
from bilevel.hypergradients.attach import detached
from bilevel.hypergradients.rule import Hypergradient
from bilevel.hypergradients.trajectory import (
    attach_program,
    check_rematerialize,
    forward_by_vjp,
    pullback_by_vjp,
    run_steps,
)
from bilevel.inner_problem import InnerProblem, Parameters
from bilevel.inner_solvers.driver import InnerInfo
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
        problem: InnerProblem, inner0: Tree, parameters: Parameters
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
            parameters,
            num_steps=num_steps,
            detached_steps=before,
            rematerialize=rematerialize,
        )

    return Hypergradient(
        name="truncated",
        pullback=pullback_by_vjp,
        forward=partial(forward_by_vjp, run),
        attach=partial(attach_program, run),
    )
