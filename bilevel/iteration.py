"""Loops as functions: the only file of the library that calls JAX's loop primitives.

A step is `step(state) -> state`, or `step(state) -> (state, output)` where a history is
asked for.  Nobody else writes `scan` or `while_loop`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from bilevel import checks

Rematerialize: TypeAlias = Literal["none", "step", "segments"]
"""What reverse-mode differentiation of T steps keeps in memory: "none" recomputes
nothing and keeps the residuals of T steps; "step" keeps T states and recomputes each
step once; "segments" keeps about 2 sqrt(T) states and recomputes each step twice."""

# Up to here a Python loop compiles fast and runs faster than a scan: XLA fuses across
# steps and no state is copied between them.
_UNROLL_UP_TO = 5


def iterate(
    step: Callable[[Any], Any],
    state: Any,
    *,
    num_steps: int,
    history: bool = False,
    rematerialize: Rematerialize = "none",
) -> Any:
    """Applies `step` a fixed number of times; differentiable in both modes.

    Args:
        step: `step(state) -> state`; with `history`, `step(state) -> (state, output)`.
        state: any pytree of arrays.
        num_steps: how many times, at least 0.
        history: also return the outputs of all steps, stacked on a new first axis.
        rematerialize: what reverse-mode differentiation stores; see `Rematerialize`.

    Returns:
        The last state; with `history`, `(state, outputs)`.

    Raises:
        ValueError: `num_steps` is negative or no integer; `rematerialize` is unknown.

    Example:
        >>> float(iterate(lambda s: 2.0 * s, 1.0, num_steps=10))
        1024.0
    """
    num_steps = checks.count("num_steps", num_steps, 0)
    if rematerialize not in ("none", "step", "segments"):
        raise ValueError(
            'rematerialize must be "none", "step" or "segments", got '
            f"{rematerialize!r}."
        )
    few = num_steps <= _UNROLL_UP_TO
    if rematerialize == "segments" and not history and not few:
        return _segments(step, state, num_steps)
    if rematerialize != "none":
        step = jax.checkpoint(step)
    if few and not history:
        for _ in range(num_steps):
            state = step(state)
        return state
    if not history:
        return _scan(step, state, num_steps)
    return jax.lax.scan(lambda carry, _: step(carry), state, None, length=num_steps)


def _scan(step: Callable[[Any], Any], state: Any, num_steps: int) -> Any:
    return jax.lax.scan(lambda s, _: (step(s), None), state, None, length=num_steps)[0]


def _segments(step: Callable[[Any], Any], state: Any, num_steps: int) -> Any:
    """Steps in about sqrt(T) segments: only the state at a segment's start is kept.

    Never in Python loops: a few segments of a few steps, each with what its checkpoint
    recomputes, would be a program of many times the size.
    """
    length = math.isqrt(num_steps)
    inner = jax.checkpoint(step)

    @jax.checkpoint
    def segment(carry: Any) -> Any:
        return _scan(inner, carry, length)

    state = _scan(segment, state, num_steps // length)
    rest = num_steps % length
    return _scan(inner, state, rest) if rest else state


def iterate_recorded(
    step: Callable[[Any], tuple[Any, Any]],
    state: Any,
    *,
    num_steps: jax.Array | int,
    capacity: int,
) -> tuple[Any, Any]:
    """Applies `step` a number of times that may be traced, and keeps its outputs.

    One compiled program serves every number of steps up to the capacity, and computes
    the same bits for each: XLA would merge a loop of a single step, if it could count
    that step, into what surrounds it, and round elsewhere.  Not differentiable in
    reverse mode.

    Args:
        step: `step(state) -> (state, output)`.
        state: any pytree of arrays.
        num_steps: how many times, from 0 to `capacity` (`[]` int32; not checked where
            it is traced).
        capacity: the rows of the outputs, at least 1.

    Returns:
        `(state, outputs)`; the outputs `[rows, ...]` with at least `capacity` rows, of
        which the first `num_steps` are written and the rest zeros.

    Raises:
        ValueError: `capacity` is less than 1 or no integer; `num_steps` is outside.

    Example:
        >>> double = lambda s: (2.0 * s, s)
        >>> state, outputs = iterate_recorded(double, 1.0, num_steps=2, capacity=3)
        >>> float(state), outputs.tolist()
        (4.0, [1.0, 2.0, 0.0])
    """
    capacity = checks.count("capacity", capacity, 1)
    if not isinstance(num_steps, jax.Array):
        num_steps = checks.count("num_steps", num_steps, 0)
        if num_steps > capacity:
            raise ValueError(
                f"num_steps must be at most capacity = {capacity}, got {num_steps}."
            )
    # A write into a single row is a copy to XLA, and again another program.
    rows = max(capacity, 2)
    outputs = jax.tree.map(
        lambda x: jnp.zeros((rows, *x.shape), x.dtype), jax.eval_shape(step, state)[1]
    )

    def body(carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
        state, outputs, steps = carry
        state, output = step(state)

        def put(rows: jax.Array, row: Any) -> jax.Array:
            row = jnp.asarray(row, rows.dtype)
            return jax.lax.dynamic_update_index_in_dim(rows, row, steps, 0)

        return state, jax.tree.map(put, outputs, output), steps + 1

    start = (state, outputs, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(lambda carry: carry[2] < num_steps, body, start)[:2]


def iterate_until(
    step: Callable[[Any], Any],
    state: Any,
    done: Callable[[Any], jax.Array],
    *,
    max_steps: jax.Array | int,
) -> tuple[Any, jax.Array]:
    """Applies `step` until `done(state)`, at most `max_steps` times.

    Differentiable in forward mode only (the number of steps depends on values); an
    argmin built on it is differentiated by its pull-back rule instead.  Under `vmap`
    all lanes run until the slowest is done, and a lane that is done no longer changes.

    Args:
        step: `step(state) -> state`.
        state: any pytree of arrays.
        done: `done(state) -> []` bool.  Write criteria as `~(residual > tolerance)`,
            so that a NaN ends the loop.
        max_steps: the cap, at least 0; it may be traced (`[]` int32).

    Returns:
        The last state, and the number of steps taken (`[]` int32).

    Raises:
        ValueError: `max_steps` is negative or no integer.

    Example:
        >>> state, steps = iterate_until(
        ...     lambda s: 2.0 * s, 1.0, lambda s: s > 100.0, max_steps=50
        ... )
        >>> float(state), int(steps)
        (128.0, 7)
    """
    if not isinstance(max_steps, jax.Array):
        max_steps = checks.count("max_steps", max_steps, 0)

    def proceed(carry: tuple[Any, jax.Array]) -> jax.Array:
        state, steps = carry
        return (steps < max_steps) & ~done(state)

    def body(carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        state, steps = carry
        return step(state), steps + 1

    return jax.lax.while_loop(proceed, body, (state, jnp.zeros((), jnp.int32)))
