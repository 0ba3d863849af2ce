"""What a relaxation is, and the drivers that run it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bilevel import trees
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
        distance: `[]`, to where the sweeps lead, estimated: the movement of the last
            two times rate / (1 - rate), their rate that of the residuals. Infinite
            where these do not shrink, or there are less than three.
    """

    state: State
    residual: jax.Array
    num_steps: jax.Array
    distance: jax.Array


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


class Seen(NamedTuple):
    """What a solver's progress is measured by, from what its steps carry.

    Attributes:
        left: `(before, after) -> []`, the residual of a step.
        state: `carry -> State`.
    """

    left: Callable[[Any, Any], jax.Array]
    state: Callable[[Any], State] = lambda carry: carry


def carried(
    step: Callable[[Any, Any], Any],
    left: Callable[[Any, Any], jax.Array],
    carry: tuple[State, Any],
    key: jax.Array | None,
    num_steps: int,
    rtol: float | None,
) -> tuple[Relaxed, Any]:
    """Runs a solver that carries a memory beside the state; returns both."""
    seen = Seen(left, lambda carry: carry[0])
    found = run(step, seen, carry, key, num_steps, rtol)
    state, memory = found.state
    return found._replace(state=state), memory


def run(
    step: Callable[[Any, Any], Any],
    seen: Seen,
    carry: Any,
    key: jax.Array | None,
    num_steps: int,
    rtol: float | None,
) -> Relaxed:
    """Exactly `num_steps` steps; with `rtol` until the residual is small, at most.

    A residual that is NaN ends a loop with `rtol`, and what it returns is NaN. Without
    `rtol` it is differentiable in both modes.

    Args:
        step: `(carry, key) -> carry`.
        seen: how far it has come.
        carry: to begin with.
        key: of the noise, or None.
        num_steps: steps.
        rtol: of the residual, relative to the size of the state.
    """
    infinite = jnp.full_like(_size(seen, carry), jnp.inf)
    zero = jnp.zeros((), jnp.int32)

    def numbered(now: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        carry, number = now
        return step(carry, fold(key, number)), number + 1

    def measured(now: _Measured) -> _Measured:
        after, number = numbered((now.carry, now.number))
        old, new = jax.lax.stop_gradient((now.carry, after))  # a root of 0 has no slope
        gaps = jax.tree.map(jnp.subtract, seen.state(new), now.before)
        return _Measured(
            carry=after,
            before=seen.state(old),
            number=number,
            residuals=(seen.left(old, new), *now.residuals[:2]),
            movement=rms(_leaves(gaps)),
        )

    def done(now: _Measured) -> jax.Array:
        return ~(now.residuals[0] > (rtol or 0.0) * _size(seen, now.carry))

    def unknown(carry: Any, number: jax.Array) -> _Measured:
        before = jax.lax.stop_gradient(seen.state(carry))
        none = (infinite, infinite, infinite)
        return _Measured(carry, before, number, none, infinite)

    if rtol is None:  # only the last three are measured
        first = iterate(numbered, (carry, zero), num_steps=max(num_steps - 3, 0))
        last = iterate(measured, unknown(*first), num_steps=min(num_steps, 3))
    else:
        start = unknown(carry, zero)
        last, _ = iterate_until(measured, start, done, max_steps=num_steps)
        last = last._replace(carry=_nowhere(last.carry, jnp.isnan(last.residuals[0])))
    return Relaxed(last.carry, last.residuals[0], last.number, _distance(seen, last))


def _nowhere(carry: Any, is_lost: jax.Array) -> Any:
    """NaN in place of all floats: others have not settled when a NaN ends the loop."""

    def lost(x: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.where(is_lost, jnp.nan, x).astype(x.dtype) if is_float else x

    return jax.tree.map(lost, carry)


class _Measured(NamedTuple):
    """After a step: also the state before it, three residuals, two steps' movement."""

    carry: Any
    before: State
    number: jax.Array
    residuals: tuple[jax.Array, jax.Array, jax.Array]
    movement: jax.Array


def _distance(seen: Seen, last: _Measured) -> jax.Array:
    """Of two steps in one: their rate is positive where a state swings, too."""
    last = jax.lax.stop_gradient(last)
    residual, _, oldest = last.residuals
    rate = residual / oldest
    is_known = (rate < 1) & jnp.isfinite(oldest)
    apart = last.movement * rate / jnp.where(is_known, 1 - rate, 1)
    # Where nothing but rounding moves the state, its rate says nothing.
    is_rounding = residual <= 8 * rounding(_leaves(seen.state(last.carry)))
    return jnp.where(is_rounding, residual, jnp.where(is_known, apart, jnp.inf))


def _leaves(state: State) -> list[jax.Array]:
    return jax.tree.leaves(state)


def _size(seen: Seen, carry: Any) -> jax.Array:
    return rms(_leaves(seen.state(carry)))


def rounding(leaves: list[jax.Array]) -> jax.Array:
    """What a state may be off by rounding, root mean square, `[]`."""
    return trees.epsilon(leaves) * rms(leaves)


def rms(leaves: list[jax.Array]) -> jax.Array:
    """The root mean square of all elements, `[]`."""
    dtype = jnp.result_type(jnp.float32, *(jnp.abs(x).dtype for x in leaves))
    squares = [jnp.sum(jnp.abs(x.astype(_wide(x, dtype))) ** 2) for x in leaves]
    count = max(sum(x.size for x in leaves), 1)
    return jnp.sqrt(sum(squares[1:], squares[0]) / count).astype(dtype)


def drawn(
    noise: float, key: jax.Array | None, state: State, group: Sequence[Key]
) -> dict[Key, jax.Array]:
    """The force of state noise on the layers of a group; none where `noise` is 0.

    Args:
        noise: sigma, of what drives each unit; of both parts where it is complex.
        key: of the draw.
        state: whose shapes it has.
        group: keys of the state.
    """
    if not noise:
        return {}
    if key is None:
        raise ValueError(
            "state noise needs a key; call the rule as "
            "rule(params, inputs, targets, key)."
        )
    found = {}
    for own, name in zip(jax.random.split(key, len(group)), group, strict=True):
        like = state[name]
        xi = jax.random.normal(own, like.shape, like.dtype)
        # jax divides the variance of a complex number among its two parts.
        size = math.sqrt(2) * noise if jnp.iscomplexobj(like) else noise
        found[name] = -size * xi
    return found


def check(num_steps: int, rtol: float | None, noise: float) -> None:
    """Raises `ValueError` for a budget, tolerance or noise out of range."""
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer >= 1, got {num_steps!r}.")
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"rtol must lie in [0, 1), got {rtol}.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be >= 0 and finite, got {noise}.")


def fold(key: jax.Array | None, number: Any) -> jax.Array | None:
    """`jax.random.fold_in`, of None None."""
    return None if key is None else jax.random.fold_in(key, number)


def _wide(x: jax.Array, dtype: jnp.dtype) -> jnp.dtype:
    return x.dtype if jnp.iscomplexobj(x) else dtype
