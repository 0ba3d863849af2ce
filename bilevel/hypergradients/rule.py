"""What a pull-back rule is."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from bilevel.hypergradients.attach import by_pullback
from bilevel.hypergradients.base import OuterObjective, Pullback, Solved, Trust
from bilevel.hypergradients.implicit_function import implicit_forward
from bilevel.inner_problem import (
    Differentiated,
    InnerProblem,
    Parameters,
    UserFunction,
)
from bilevel.inner_solvers.driver import InnerInfo
from bilevel.trees import Tree


class PullbackRule(Protocol):
    """Pulls a cotangent back through a solved inner problem."""

    def __call__(
        self, solved: Solved, outer_objective: OuterObjective, warm_start: Any, /
    ) -> Pullback:
        """(dw*/dx)' v, with a report.

        Args:
            solved: the inner problem, its solution, and what is differentiated.
            outer_objective: v, and more of the outer objective where it is known.
            warm_start: `Pullback.warm_start` of an earlier call, of `init`, or None:
                there is nothing to start from.
        """
        ...


class Forward(Protocol):
    """Solves the inner problem."""

    def __call__(
        self, problem: InnerProblem, inner0: Tree, differentiated: Differentiated, /
    ) -> tuple[Solved, InnerInfo]:
        """The solution from `inner0`, with what the pull-back needs of the way."""
        ...


class Attach(Protocol):
    """Makes the solution differentiable by JAX."""

    def __call__(
        self,
        rule: "Hypergradient",
        problem: InnerProblem,
        function: Callable[[Tree, Parameters], jax.Array] | None,
        trust: Trust,
        /,
    ) -> Callable[[Tree, Parameters], tuple[Tree, InnerInfo]]:
        """`f(inner0, parameters) -> (inner, InnerInfo)`, differentiable by the rule.

        Args:
            rule: itself.
            problem: the inner problem.
            function: the outer objective, where the user gave it, or None.
            trust: what becomes of a gradient that cannot be trusted.
        """
        ...


def no_warm_start(inner: Tree) -> None:
    """The warm start of a rule that has none."""
    del inner


class Hypergradient(NamedTuple):
    """A rule that pulls a cotangent back through an argmin.

    The first two fields make a rule; the defaults of the others are those of a rule
    that looks at the solution only, not at the way to it.

    Attributes:
        name: as in the literature.
        pullback: see `PullbackRule`.
        forward: see `Forward`; the default runs the inner solver, and its result can
            be differentiated once more by the implicit function theorem.
        attach: see `Attach`; the default installs `pullback` as a custom vjp.
        init: `inner -> warm start`, what an outer loop carries before the first call:
            a tree of the structure of `Pullback.warm_start`, or None.
        follows_tolerance: solutions and adjoints of accuracy `Parameters.tolerance`
            give it a gradient of about that accuracy.  (Not true of differences of
            solutions.)
        sees_start: its derivative is that of the program, the initial point included.
        functions: of the user's (a tilt, the size of a nudge), bound with the problem:
            `solved.problem.oracle.functions[name]`.
    """

    name: str
    pullback: PullbackRule
    forward: Forward = implicit_forward
    attach: Attach = by_pullback
    init: Callable[[Tree], Any] = no_warm_start
    follows_tolerance: bool = False
    sees_start: bool = False
    functions: tuple[UserFunction, ...] = ()
