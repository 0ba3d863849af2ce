"""Anderson acceleration."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel.energy.networks.base import State
from bilevel.energy.relaxations.base import (
    Map,
    Relaxation,
    Relaxed,
    carried,
    check,
    rms,
)


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
    check(num_steps, rtol, 0.0)
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
            return rms(jax.tree.leaves(gaps))

        found, (images, _, count) = carried(
            step, left, (state, history), None, num_steps, rtol
        )
        # The last image, not a combination, which may lie outside of the units' bounds.
        last = jax.tree.map(lambda x: x[(count - 1) % memory], images)
        return found._replace(state=last)

    return Relaxation("anderson", solve)


def _combine(weights: jax.Array, stacked: jax.Array) -> jax.Array:
    """sum_m weights[b, m] stacked[m, b, ...]."""
    return jnp.einsum("bm,mb...->b...", weights.astype(stacked.dtype), stacked)


def _weights(gaps: State, used: jax.Array, ridge: float) -> jax.Array:
    """`[B, m]`, of sum 1: the least combined residual of each example."""
    dot = lambda g: jnp.einsum("mb...,nb...->bmn", g, g)
    wide = lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32))
    grams = [dot(wide(g)) for g in jax.tree.leaves(gaps)]
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
