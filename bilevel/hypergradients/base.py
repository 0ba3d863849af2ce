"""What a pull-back rule is given, and what it reports.

Signs: with w*(x) = argmin_w G(w, x), H = d2G/dw2 and J = d2G/dw dx, the derivative of
the argmin is dw*/dx = -H^-1 J, and the pull-back of a cotangent v is -J' u, H u = v.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel.inner_problem import Differentiated, InnerProblem, Pairs, Parameters
from bilevel.preconditioners import carried
from bilevel.trees import Tree


class Solved(NamedTuple):
    """An inner problem with its solution.

    Attributes:
        problem: the inner problem.
        inner: w, where its solver ended (with multipliers, where it has some).
        differentiated: what the pull-back is with respect to.
        residuals: what the rule's forward pass kept for its pull-back.
    """

    problem: InnerProblem
    inner: Tree
    differentiated: Differentiated
    residuals: Any = None


def at_solution(solved: Solved) -> Solved:
    """The same, with a preconditioner that was fitted at the solution."""
    problem, differentiated = solved.problem, solved.differentiated
    if problem.preconditioner is None:
        return solved
    parameters, _ = carried.at_solution(
        problem, solved.inner, differentiated.parameters(), None
    )
    return with_state(solved, parameters.preconditioner)


def with_state(solved: Solved, state: Any) -> Solved:
    """The same, with another state of the preconditioner."""
    build = solved.differentiated.build
    differentiated = solved.differentiated._replace(
        build=lambda values: build(values)._replace(preconditioner=state)
    )
    return solved._replace(differentiated=differentiated)


class OuterObjective(NamedTuple):
    """What a rule is told of the outer objective.

    Attributes:
        cotangent: v = dF/dw at the solution.
        function: F itself, `(inner, parameters) -> []`, or None if it is not known.
        gradient: `inner -> (dF/dw, dF/dx)`, the latter a tree like
            `Differentiated.values`, for certificates; None if only the cotangent is
            known.
    """

    cotangent: Tree
    function: Callable[[Tree, Parameters], jax.Array] | None = None
    gradient: Callable[[Tree], tuple[Tree, Tree]] | None = None


class PullbackInfo(NamedTuple):
    """How a pull-back went; scalars, and None for what the rule does not know.

    Attributes:
        relative_residual: of the adjoint equation, |H u - v| / |v| (implicit:
            recomputed; nudged: from the residuals of the nudged states).
        error: estimated relative error of the adjoint u.
        num_steps: `[]` int32, iterations spent on it.
        converged: the adjoint equation, or the nudged problems, were solved to the
            tolerance asked for; None for a rule that solves none.
        positive_definite: no negative curvature was met; None for a rule that does not
            look at curvature.
        bias: estimated relative bias of the rule against the derivative of the argmin,
            0 for exact rules.
    """

    relative_residual: jax.Array | None
    error: jax.Array | None
    num_steps: jax.Array
    converged: jax.Array | None
    positive_definite: jax.Array | None
    bias: jax.Array | None


class Pullback(NamedTuple):
    """The result of a pull-back.

    Attributes:
        cotangent: (dw*/dx)' v, a tree like `Differentiated.values`.
        info: how it went.
        adjoint: u, a tree like the solution, where the rule has one: from it the
            certificate starts.  None otherwise.
        warm_start: what the next pull-back of the same rule starts from, of any kind;
            None for nothing.
        pairs: of the linear solve, where the preconditioner learns from them; or None.
        damping: the linear system was (H + damping I) u = v.
    """

    cotangent: Tree
    info: PullbackInfo
    adjoint: Tree | None = None
    warm_start: Any = None
    pairs: Pairs | None = None
    damping: float = 0.0


class Place(NamedTuple):
    """A line of a user's program."""

    file: str
    line: int


class Trust(NamedTuple):
    """The settings and the channel of a certificate under `jax.grad`.

    Attributes:
        rtol: the relative error that `trustworthy` promises not to be exceeded.
        on_untrustworthy: "warn", "nan" or "ignore".
        place: the line that a warning points at, where the solution was asked for.
    """

    rtol: float
    on_untrustworthy: str
    place: Place | None = None


def assert_pullback(result: Pullback, solved: Solved) -> None:
    """A rule's result has the shapes that the rest of the library takes for granted.

    A scalar cotangent would be added to dF/dx by broadcasting, without an error.

    Args:
        result: of `rule.pullback`.
        solved: what it was given.

    Raises:
        AssertionError: naming the leaf; it is the rule's fault, not its user's.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(
        result.cotangent, solved.differentiated.values
    )
    if result.adjoint is not None:
        chex.assert_trees_all_equal_shapes_and_dtypes(result.adjoint, solved.inner)


def plain_info() -> PullbackInfo:
    """The report of a rule that solves no adjoint equation."""
    return PullbackInfo(
        relative_residual=None,
        error=None,
        num_steps=jnp.zeros((), jnp.int32),
        converged=None,
        positive_definite=None,
        bias=None,
    )


INITIAL_POINT = (
    "the initial inner variable is being differentiated, but the {name} rule gives the "
    "derivative of the argmin, which does not depend on where the solver started: its "
    "gradient would silently be zero. If an initialisation is what you learn (MAML), "
    "use hypergradients.unrolled() in reverse mode; if it is only a warm start, pass "
    "jax.lax.stop_gradient(inner)."
)
