"""What a relaxation is, and the drivers that run it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bilevel.energy.networks.base import Key, State
from bilevel.iteration import iterate, iterate_until

Map: TypeAlias = Callable[[State, dict[Key, jax.Array]], State]
"""`(state, further force) -> state`: every layer's minimiser, the others held."""


class Relaxed(NamedTuple):
    """A state, and how far from settled it is.

    Attributes:
        state: the last one.
        residual: `[]`, the root mean square, over units and examples, of the way that
            was left to each layer's minimiser in the last sweep.
        num_steps: `[]` int32.
    """

    state: State
    residual: jax.Array
    num_steps: jax.Array


class Relaxation(NamedTuple):
    """A solver of one phase.

    Attributes:
        name: of the solver.
        solve: `(map, state, key) -> Relaxed`. The key, of the state noise, may be None
            where `noise` is 0.
        noise: the standard deviation of the noise.
    """

    name: str
    solve: Callable[[Map, State, jax.Array | None], Relaxed]
    noise: float = 0.0


def carried(
    step: Callable[[Any, Any], Any],
    left: Callable[[Any, Any], jax.Array],
    carry: tuple[State, Any],
    num_steps: int,
    rtol: float | None,
) -> tuple[Relaxed, Any]:
    """Runs a solver that carries a memory beside the state; returns both."""
    if rtol is None:
        found = budget(step, left, carry, None, num_steps)
    else:
        size = lambda carry: rms(jax.tree.leaves(carry[0]))
        found = until(step, left, size, carry, None, num_steps, rtol)
    state, memory = found.state
    return found._replace(state=state), memory


def budget(
    step: Callable[[Any, Any], Any],
    left: Callable[[Any, Any], jax.Array],
    state: Any,
    key: jax.Array | None,
    num_steps: int,
) -> Relaxed:
    """Exactly `num_steps` steps; differentiable in both modes."""

    def body(carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        state, number = carry
        return step(state, _fold(key, number)), number + 1

    start = (state, jnp.zeros((), jnp.int32))
    before, number = iterate(body, start, num_steps=num_steps - 1)
    after, number = body((before, number))
    return Relaxed(after, left(before, after), number)


def until(
    step: Callable[[Any, Any], Any],
    left: Callable[[Any, Any], jax.Array],
    size: Callable[[Any], jax.Array],
    state: Any,
    key: jax.Array | None,
    num_steps: int,
    rtol: float,
) -> Relaxed:
    """Until `left` is at most rtol times `size`, at most `num_steps` steps."""

    def body(carry: Any) -> Any:
        state, _, number = carry
        new = step(state, _fold(key, number))
        return new, left(state, new), number + 1

    def done(carry: Any) -> jax.Array:
        state, residual, _ = carry
        return ~(residual > rtol * size(state))

    infinite = jnp.full_like(size(state), jnp.inf)
    start = (state, infinite, jnp.zeros((), jnp.int32))
    (state, residual, number), _ = iterate_until(body, start, done, max_steps=num_steps)
    return Relaxed(state, residual, number)


def rms(leaves: list[jax.Array]) -> jax.Array:
    """The root mean square of all elements, `[]`."""
    dtype = jnp.result_type(jnp.float32, *(jnp.abs(x).dtype for x in leaves))
    squares = [jnp.sum(jnp.abs(x.astype(_wide(x, dtype))) ** 2) for x in leaves]
    count = max(sum(x.size for x in leaves), 1)
    return jnp.sqrt(sum(squares[1:], squares[0]) / count).astype(dtype)


def check(num_steps: int, rtol: float | None, noise: float) -> None:
    """Raises `ValueError` for a budget, tolerance or noise out of range."""
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer >= 1, got {num_steps!r}.")
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"rtol must lie in [0, 1), got {rtol}.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be >= 0 and finite, got {noise}.")


def _fold(key: jax.Array | None, number: jax.Array) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def _wide(x: jax.Array, dtype: jnp.dtype) -> jnp.dtype:
    return x.dtype if jnp.iscomplexobj(x) else dtype
