"""Sweeps over groups of layers, in any order."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from bilevel.energy.networks.base import Key, State, keys_of, replaced
from bilevel.energy.relaxations.base import (
    Map,
    Relaxation,
    Relaxed,
    Seen,
    check,
    drawn,
    fold,
    rms,
    run,
)
from bilevel.energy.relaxations.layerwise import Part, layerwise

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
            of keys. Where layers have names and no numbers, they count in alphabetical
            order: give groups for the network's own.
        step_size: in (0, 1], one for all or one for each layer.
        rtol: stop where a sweep moves the state by at most rtol times its size.
        noise: sigma of Gaussian noise, drawn at every update and added to what drives
            each unit, s <- f(drive + sigma xi): an analog device. Complex states get it
            in both parts.

    Returns:
        A `Relaxation`; a sweep costs about 1 g, however many groups there are: a group
        has the operations that its layers need.

    Raises:
        ValueError: an argument out of range; when it is traced, groups that do not
            hold every layer.

    Source: Scellier et al. 2023, arXiv:2312.15103 (even and odd layers); Hoier and
    Zach 2024, arXiv:2402.08573 (orders); Laborieux and Zenke 2022, arXiv:2209.00530
    (noise).

    Example:
        >>> free, nudged = sweeps(30), sweeps(10)
    """
    check(num_steps, rtol, noise)
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
            respond = _responses(apply, state, groups, bool(noise))
            for number, group in enumerate(groups):
                force = drawn(noise, fold(key, number), state, group)
                new = respond(state, force, group)
                moved = {k: _towards(state[k], new[k], part[k]) for k in group}
                state = replaced(state, moved)
            return state

        def left(before: State, after: State) -> jax.Array:
            """The last sweep's movement, as if the step size had been 1."""
            return rms([(after[k] - before[k]) / part[k] for k in keys])

        return run(sweep, Seen(left), state, key, num_steps, rtol)

    return Relaxation("sweeps", solve, noise)


def _responses(
    apply: Map, state: State, groups: list[list[Key]], is_noisy: bool
) -> Part:
    """`apply` for each group: as it is, or in parts where there are several."""
    if len(groups) == 1:
        return lambda state, force, group: apply(state, dict(force))
    none = {key: jnp.zeros_like(state[key]) for key in keys_of(state)}
    none = none if is_noisy else {}
    part = layerwise(apply, state, none)
    return lambda state, force, group: part(state, {**none, **force}, group)


def _towards(old: jax.Array, new: jax.Array, part: Any) -> jax.Array:
    is_whole = isinstance(part, int | float) and part == 1
    return new if is_whole else (old + part * (new - old)).astype(old.dtype)


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
