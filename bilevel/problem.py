"""What a bilevel problem is: two objectives, and the data they are evaluated on.

    min over x of F(w*(x), x)     where   w*(x) = argmin over w of G(w, x)

G is the inner objective, F the outer one, w the inner and x the outer variable.
"""

import zlib
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import jax

from bilevel.inner_problem import Preconditioner
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
        preconditioner: an approximate inverse of d2G/dw2, from `preconditioners`, for
            every solve with it: Newton's, the adjoint one, and those of certificates.

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
    preconditioner: Preconditioner | None = None


class Batches(NamedTuple):
    """One batch for each of the two objectives: any pytrees."""

    inner: Any = None
    outer: Any = None


class Sampler(Protocol):
    """Draws batches; a pure function, so that a run goes on from its step alone."""

    def __call__(self, key: jax.Array, draw: jax.Array, /) -> Any:
        """The batch with the number `draw` (`[]` int32) of the stream of `key`."""
        ...


class Samples(NamedTuple):
    """Where an outer algorithm gets its data: as many batches a step as it needs.

    Attributes:
        inner: for the inner objective; `bilevel.samplers` has some.
        outer: for the outer objective.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevel import samplers
        >>> train, validation = jnp.arange(100.0), jnp.arange(20.0)
        >>> samples = Samples(
        ...     inner=samplers.epochs(train, batch_size=10),
        ...     outer=samplers.full(validation),
        ... )
    """

    inner: Sampler
    outer: Sampler


def as_samples(data: Samples | Batches) -> Samples:
    """Samples as they are; of one `Batches`, that one in every draw.

    Raises:
        ValueError: `data` is neither.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, Batches):
        return Samples(lambda key, draw: data.inner, lambda key, draw: data.outer)
    raise ValueError(
        "expected the data as bilevel.Samples(inner=..., outer=...), two samplers, or "
        "as one bilevel.Batches(inner=..., outer=...) for all steps, got "
        f"{type(data).__name__}. Write Batches(train, validation), or "
        "Samples(samplers.epochs(train, 128), samplers.full(validation))."
    )


def stream(key: jax.Array, name: str) -> jax.Array:
    """The key of a random stream of its own: one for each use, told apart by name.

    An algorithm draws from `fold_in(stream(state.key, name), state.step)`, or hands the
    stream to a sampler with the number of the draw.  The names "inner" and "outer" are
    those of the batches.

    Args:
        key: the state's, which is never consumed.
        name: any text.

    Example:
        >>> key = jax.random.key(0)
        >>> bool(stream(key, "inner") == stream(key, "noise"))
        False
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


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
        """`[]` typed PRNG key; never consumed: its streams are (see `stream`)."""
        ...


State = TypeVar("State", bound=SolverState)
Info = TypeVar("Info")


class Solver(NamedTuple, Generic[State, Info]):
    """An outer algorithm: two pure functions over one pytree of state.

    Attributes:
        init: `init(inner, outer, key) -> state`.
        update: `update(state, samples) -> (state, info)`; it draws as many batches as
            it needs, and takes one `Batches` for all draws, too.
    """

    init: Callable[[Tree, Tree, jax.Array], State]
    update: Callable[[State, Samples | Batches], tuple[State, Info]]
