"""Descent of the energy by any optax optimiser."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel.energy.networks.base import State, keys_of
from bilevel.energy.relaxations.base import (
    Map,
    Relaxation,
    Relaxed,
    carried,
    check,
    drawn,
    rms,
)


def gradient(
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    rtol: float | None = None,
    noise: float = 0.0,
) -> Relaxation:
    """Descends the energy in all layers at once, by any optax optimiser.

    The gradient is s - respond(s), which is dE/ds where the energy's curvature in each
    layer by itself is 1 and nothing is bounded, as in predictive coding. Units with
    bounds may leave them, by momentum: then a residual stays.

    Args:
        optimizer: of the states; its momentum starts at zero in every phase.
        num_steps: steps; the cap where `rtol` is given.
        rtol: as in `sweeps`.
        noise: as in `sweeps`, drawn at every step.

    Returns:
        A `Relaxation`; a step costs about 1 g.

    Raises:
        ValueError: an argument out of range.

    Source: Pinchetti et al. 2024, arXiv:2407.01163 (momentum in inference).

    Example:
        >>> inference = gradient(optax.sgd(0.05, momentum=0.5), 5)
    """
    check(num_steps, rtol, noise)

    def solve(apply: Map, state: State, key: jax.Array | None) -> Relaxed:
        def step(carry: Any, key: jax.Array | None) -> Any:
            state, (memory, _) = carry
            force = drawn(noise, key, state, keys_of(state))
            slope = jax.tree.map(jnp.subtract, state, apply(state, force))
            updates, memory = optimizer.update(slope, memory, state)
            return optax.apply_updates(state, updates), (memory, slope)

        def left(before: Any, after: Any) -> jax.Array:
            del before
            return rms(jax.tree.leaves(after[1][1]))

        start = (state, (optimizer.init(state), state))
        return carried(step, left, start, key, num_steps, rtol)[0]

    return Relaxation("gradient", solve, noise)
