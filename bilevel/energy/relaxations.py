"""How a network's state settles: plug-in solvers for every phase of every rule.

    sweeps     each layer's minimiser in turn, in any order, or a part of the way there
    gradient   all layers down the energy, by any optax optimiser
    anderson   the synchronous map, accelerated

All of them see the network through its response: every layer's minimiser.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel.energy.networks.base import Key, State, keys_of, replaced
from bilevel.iteration import iterate, iterate_until

Map: TypeAlias = Callable[[State, dict[Key, jax.Array]], State]
"""`(state, further force) -> state`: every layer's minimiser, the others held."""

Order: TypeAlias = str | Sequence[Sequence[Any]]
"""A name, or groups of the state's keys that are updated one after the other."""

ORDERS = (
    "synchronous",
    "even_odd",
    "odd_even",
    "forward",
    "backward",
    "forward_backward",
)


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


def sweeps(
    num_steps: int,
    *,
    order: Order = "even_odd",
    step_size: float | Sequence[float] = 1.0,
    rtol: float | None = None,
    noise: float = 0.0,
) -> Relaxation:
    """Sweeps over groups of layers, each moved towards its minimiser.

        s_k <- s_k + step_size (respond(s)_k - s_k)

    With step size 1 it is exact block-coordinate descent, if no two layers of a group
    are connected; "synchronous" has one group, the fixed-point iteration of all layers
    at once. A step size below 1 is gradient descent where the potential is quadratic
    with curvature 1 and no bound is active (the inference of predictive coding), and
    damps all else.

    Args:
        num_steps: sweeps; the cap where `rtol` is given.
        order: "synchronous"; "even_odd", "odd_even" (layers 2, 4, ... before or after
            1, 3, ...); "forward", "backward" (one layer after another from the inputs
            up, or down); "forward_backward" (up and down again in one sweep); or groups
            of keys.
        step_size: in (0, 1], one for all or one for each layer.
        rtol: stop where a sweep moves the state by at most rtol times its size.
        noise: sigma of Gaussian noise, drawn at every update and added to what drives
            each unit, s <- f(drive + sigma xi): an analog device. Complex states get it
            in both parts.

    Returns:
        A `Relaxation`; a sweep costs about 1 g, however many groups there are.

    Raises:
        ValueError: an argument out of range; when it is traced, groups that do not
            hold every layer.

    Source: Scellier et al. 2023, arXiv:2312.15103 (even and odd layers); Hoier and
    Zach 2024, arXiv:2402.08573 (orders); Laborieux and Zenke 2022, arXiv:2209.00530
    (noise).

    Example:
        >>> free, nudged = sweeps(30), sweeps(10)
    """
    _check(num_steps, rtol, noise)
    sizes = [step_size] if isinstance(step_size, int | float) else list(step_size)
    if not all(0 < one <= 1 for one in sizes):
        raise ValueError(f"sweeps: step_size must lie in (0, 1], got {step_size}.")
    if isinstance(order, str) and order not in ORDERS:
        raise ValueError(
            f"sweeps: there is no order {order!r}; there are {', '.join(ORDERS)}, or "
            "pass groups of keys."
        )
    return damped_sweeps(num_steps, order, sizes, rtol=rtol, noise=noise)


def damped_sweeps(
    num_steps: int,
    order: Order,
    step_sizes: Sequence[Any],
    *,
    rtol: float | None = None,
    noise: float = 0.0,
) -> Relaxation:
    """`sweeps` with step sizes that may be traced, one for all or one for each layer.

    Args:
        num_steps: sweeps.
        order: as in `sweeps`.
        step_sizes: numbers or scalar arrays in (0, 1]; not checked.
        rtol: as in `sweeps`.
        noise: as in `sweeps`.
    """

    def solve(apply: Map, state: State, key: jax.Array | None) -> Relaxed:
        keys = keys_of(state)
        groups = _groups(order, keys)
        part = dict(zip(keys, _spread(step_sizes, keys), strict=True))

        def sweep(state: State, key: jax.Array | None) -> State:
            for number, group in enumerate(groups):
                force = _draw(noise, key, number, state, group)
                new = apply(state, force)
                moved = {k: _towards(state[k], new[k], part[k]) for k in group}
                state = replaced(state, moved)
            return state

        def left(before: State, after: State) -> jax.Array:
            """The last sweep's movement, as if the step size had been 1."""
            return _rms([(after[k] - before[k]) / part[k] for k in keys])

        if rtol is None:
            return _budget(sweep, left, state, key, num_steps)
        size = lambda state: _rms(jax.tree.leaves(state))
        return _until(sweep, left, size, state, key, num_steps, rtol)

    return Relaxation("sweeps", solve, noise)


def gradient(
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    rtol: float | None = None,
) -> Relaxation:
    """Descends the energy in all layers at once, by any optax optimiser.

    The gradient is s - respond(s), which is dE/ds where the energy's curvature in each
    layer by itself is 1 and nothing is bounded, as in predictive coding.

    Args:
        optimizer: of the states; its momentum starts at zero in every phase.
        num_steps: steps; the cap where `rtol` is given.
        rtol: as in `sweeps`.

    Returns:
        A `Relaxation`; a step costs about 1 g. Not for noise.

    Raises:
        ValueError: an argument out of range.

    Source: Pinchetti et al. 2024, arXiv:2407.01163 (momentum in inference).

    Example:
        >>> inference = gradient(optax.sgd(0.05, momentum=0.5), 5)
    """
    _check(num_steps, rtol, 0.0)

    def solve(apply: Map, state: State, key: jax.Array | None) -> Relaxed:
        del key

        def step(carry: Any, key: jax.Array | None) -> Any:
            del key
            state, (memory, _) = carry
            slope = jax.tree.map(jnp.subtract, state, apply(state, {}))
            updates, memory = optimizer.update(slope, memory, state)
            return optax.apply_updates(state, updates), (memory, slope)

        def left(before: Any, after: Any) -> jax.Array:
            del before
            return _rms(jax.tree.leaves(after[1][1]))

        start = (state, (optimizer.init(state), state))
        return _carried(step, left, start, num_steps, rtol)[0]

    return Relaxation("gradient", solve)


def anderson(
    num_steps: int,
    *,
    memory: int = 4,
    rtol: float | None = None,
    ridge: float = 1e-6,
    mixing: float = 1.0,
) -> Relaxation:
    """Anderson acceleration of the synchronous map, for each example by itself.

    The next state is the combination of the last `memory` images whose combined
    residual respond(s) - s is smallest.

    Args:
        num_steps: applications of the map; the cap where `rtol` is given.
        memory: how many states to combine.
        rtol: stop where the residual is at most rtol times the size of the state.
        ridge: regularisation, relative to the largest residual in memory.
        mixing: in (0, 1]; of the images with the states they came from.

    Returns:
        A `Relaxation`; a step costs about 1 g, its memory `2 memory` states. Not for
        noise.

    Raises:
        ValueError: an argument out of range; when it is traced, complex states.

    Source: Walker and Ni 2011, "Anderson acceleration for fixed-point iterations".

    Example:
        >>> free = anderson(20, memory=5)
    """
    _check(num_steps, rtol, 0.0)
    if memory < 1 or not 0 < mixing <= 1 or not ridge >= 0:
        raise ValueError(
            "anderson: expected memory >= 1, mixing in (0, 1], ridge >= 0, got "
            f"memory={memory}, mixing={mixing}, ridge={ridge}."
        )

    def solve(apply: Map, state: State, key: jax.Array | None) -> Relaxed:
        del key
        if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(state)):
            raise ValueError("anderson: complex states are not supported; use sweeps.")
        stack = jax.tree.map(lambda x: jnp.zeros((memory, *x.shape), x.dtype), state)
        full = jax.tree.map(lambda x, z: z + x[None], state, stack)
        history = (full, stack, jnp.zeros((), jnp.int32))

        def step(carry: Any, key: jax.Array | None) -> Any:
            del key
            state, (images, gaps, count) = carry
            new = apply(state, {})
            put = lambda past, x: past.at[count % memory].set(x)
            images = jax.tree.map(put, images, new)
            gap = jax.tree.map(jnp.subtract, new, state)
            gaps = jax.tree.map(put, gaps, gap)
            used = jnp.arange(memory) <= count
            weights = _weights(gaps, used, ridge)
            mixed = jax.tree.map(
                lambda i, g: _combine(weights, i - (1 - mixing) * g), images, gaps
            )
            return mixed, (images, gaps, count + 1)

        def left(before: Any, after: Any) -> jax.Array:
            count = before[1][2]
            gaps = jax.tree.map(lambda g: g[count % memory], after[1][1])
            return _rms(jax.tree.leaves(gaps))

        found, (images, _, count) = _carried(
            step, left, (state, history), num_steps, rtol
        )
        # The last image, not a combination, which may lie outside of the units' bounds.
        last = jax.tree.map(lambda x: x[(count - 1) % memory], images)
        return found._replace(state=last)

    return Relaxation("anderson", solve)


def _carried(
    step: Callable[[Any, Any], Any],
    left: Callable[[Any, Any], jax.Array],
    carry: tuple[State, Any],
    num_steps: int,
    rtol: float | None,
) -> tuple[Relaxed, Any]:
    """Runs a solver that carries a memory beside the state; returns both."""
    if rtol is None:
        found = _budget(step, left, carry, None, num_steps)
    else:
        size = lambda carry: _rms(jax.tree.leaves(carry[0]))
        found = _until(step, left, size, carry, None, num_steps, rtol)
    state, memory = found.state
    return found._replace(state=state), memory


def _budget(
    step: Callable[[Any, Any], Any],
    left: Callable[[Any, Any], jax.Array],
    state: Any,
    key: jax.Array | None,
    num_steps: int,
) -> Relaxed:
    """Exactly `num_steps`; differentiable in both modes."""

    def body(carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        state, number = carry
        return step(state, _fold(key, number)), number + 1

    start = (state, jnp.zeros((), jnp.int32))
    before, number = iterate(body, start, num_steps=num_steps - 1)
    after, number = body((before, number))
    return Relaxed(after, left(before, after), number)


def _until(
    step: Callable[[Any, Any], Any],
    left: Callable[[Any, Any], jax.Array],
    size: Callable[[Any], jax.Array],
    state: Any,
    key: jax.Array | None,
    num_steps: int,
    rtol: float,
) -> Relaxed:
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


def _fold(key: jax.Array | None, number: jax.Array) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def _draw(
    noise: float,
    key: jax.Array | None,
    number: int,
    state: State,
    group: Sequence[Key],
) -> dict[Key, jax.Array]:
    if not noise:
        return {}
    if key is None:
        raise ValueError(
            "sweeps: state noise needs a key; call the rule as "
            "rule(params, inputs, targets, key)."
        )
    keys = jax.random.split(jax.random.fold_in(key, number), len(group))
    drawn = {}
    for one, name in zip(keys, group, strict=True):
        like = state[name]
        if jnp.iscomplexobj(like):  # jax divides the variance among the two parts
            xi = math.sqrt(2) * jax.random.normal(one, like.shape, like.dtype)
        else:
            xi = jax.random.normal(one, like.shape, like.dtype)
        drawn[name] = -noise * xi
    return drawn


def _towards(old: jax.Array, new: jax.Array, part: Any) -> jax.Array:
    is_whole = isinstance(part, int | float) and part == 1
    return new if is_whole else (old + part * (new - old)).astype(old.dtype)


def _rms(leaves: list[jax.Array]) -> jax.Array:
    dtype = jnp.result_type(jnp.float32, *(jnp.abs(x).dtype for x in leaves))
    squares = [jnp.sum(jnp.abs(x.astype(_wide(x, dtype))) ** 2) for x in leaves]
    count = max(sum(x.size for x in leaves), 1)
    return jnp.sqrt(sum(squares[1:], squares[0]) / count).astype(dtype)


def _wide(x: jax.Array, dtype: jnp.dtype) -> jnp.dtype:
    return x.dtype if jnp.iscomplexobj(x) else dtype


def _combine(weights: jax.Array, stacked: jax.Array) -> jax.Array:
    """sum_m weights[b, m] stacked[m, b, ...]."""
    return jnp.einsum("bm,mb...->b...", weights.astype(stacked.dtype), stacked)


def _weights(gaps: State, used: jax.Array, ridge: float) -> jax.Array:
    """`[B, m]`, of sum 1: the least combined residual of each example."""
    dot = lambda g: jnp.einsum("mb...,nb...->bmn", g, g)
    grams = [dot(g) for g in jax.tree.leaves(gaps)]
    gram = sum(grams[1:], grams[0])
    both = used[:, None] & used[None, :]
    largest = jnp.max(jnp.where(both, gram, 0), axis=(1, 2), keepdims=True)
    eye = jnp.eye(len(used), dtype=gram.dtype)
    # Rows that are not in use become those of the identity, with weight 0.
    scaled = jnp.where(both, gram / jnp.where(largest > 0, largest, 1), 0)
    diagonal = jnp.where(used, ridge + jnp.finfo(gram.dtype).eps, 1)
    system = scaled + (eye * diagonal[None])[None]
    ones = jnp.broadcast_to(used.astype(gram.dtype), (len(gram), len(used)))
    solved = jnp.linalg.solve(system, ones[..., None])[..., 0]
    return solved / jnp.sum(solved, axis=1, keepdims=True)


def _spread(sizes: Sequence[Any], keys: list[Key]) -> list[Any]:
    if len(sizes) not in (1, len(keys)):
        raise ValueError(
            f"sweeps: expected one step size or {len(keys)}, one for each layer, got "
            f"{len(sizes)}."
        )
    return [*sizes] * len(keys) if len(sizes) == 1 else [*sizes]


def _groups(order: Order, keys: list[Key]) -> list[list[Key]]:
    if not isinstance(order, str):
        groups = [list(group) for group in order]
        if {key for group in groups for key in group} != set(keys):
            raise ValueError(
                f"sweeps: the groups must hold every layer: expected {keys}, got "
                f"{groups}."
            )
        return groups
    even, odd = keys[1::2], keys[0::2]  # layers are counted from 1
    each = [[key] for key in keys]
    return {
        "synchronous": [keys],
        "even_odd": [even, odd] if even else [odd],
        "odd_even": [odd, even] if even else [odd],
        "forward": each,
        "backward": each[::-1],
        "forward_backward": [*each, *each[-2::-1]],
    }[order]


def _check(num_steps: int, rtol: float | None, noise: float) -> None:
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer >= 1, got {num_steps!r}.")
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"rtol must lie in [0, 1), got {rtol}.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be >= 0 and finite, got {noise}.")
