"""What a bilevel problem is: two objectives, and the batches they are evaluated on.

    min over x of F(w*(x), x)     where   w*(x) = argmin over w of G(w, x)

G is the inner objective, F the outer one, w the inner and x the outer variable.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

from bilevel.trees import Tree

Objective: TypeAlias = Callable[[Tree, Tree, Any], Any]
"""`objective(inner, outer, batch) -> scalar`, or `(scalar, aux)` where a function that
takes objectives was told so (`has_aux`).  `inner` and `outer` are pytrees of floating-
point arrays; `batch` is any pytree: arrays of any dtype, PRNG keys, or None."""


class Problem(NamedTuple):
    """A bilevel problem.

    Attributes:
        inner_objective: G(inner, outer, batch), minimised over `inner`.
        outer_objective: F(inner, outer, batch), minimised over `outer`.
        inner_has_aux: G returns `(scalar, aux)`, for instance the batch statistics of
            a network.
        outer_has_aux: F returns `(scalar, aux)`, for instance an accuracy.
        initial: `(outer, inner batch) -> inner`, where the inner solver starts, if that
            is a function of x (MAML: x is the initial point, and the rule is
            `hypergradients.unrolled()`); None where the caller gives it.

    Example:
        >>> problem = Problem(
        ...     inner_objective=lambda w, x, batch: (w - x) ** 2,
        ...     outer_objective=lambda w, x, batch: w**2,
        ... )
    """

    inner_objective: Objective
    outer_objective: Objective
    inner_has_aux: bool = False
    outer_has_aux: bool = False
    initial: Callable[[Tree, Any], Tree] | None = None


class Batches(NamedTuple):
    """The data of one outer step: any pytree for each of the two objectives."""

    inner: Any = None
    outer: Any = None


class SolverState(Protocol):
    """What every outer algorithm's state carries besides its own fields."""

    @property
    def inner(self) -> Tree:
        """The inner variable w."""
        ...

    @property
    def outer(self) -> Tree:
        """The outer variable x."""
        ...

    @property
    def step(self) -> jax.Array:
        """`[]` int32: the number of updates made."""
        ...

    @property
    def key(self) -> jax.Array:
        """`[]` typed PRNG key; never consumed, only folded with `step`."""
        ...


class Solver(NamedTuple):
    """An outer algorithm: two pure functions over one pytree of state.

    Attributes:
        init: `init(inner, outer, key) -> state`.
        update: `update(state, batches) -> (state, info)`.
    """

    init: Callable[[Tree, Tree, jax.Array], Any]
    update: Callable[[Any, Batches], tuple[Any, Any]]
