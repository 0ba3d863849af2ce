"""Networks of resistors and diodes, which physics relaxes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bilevel.energy.networks.base import EnergyNetwork, Key, State, state_gradient
from bilevel.trees import Tree


def resistive(
    sizes: Sequence[int], *, gain: float = 100.0, spread: float = 1.0
) -> EnergyNetwork:
    """Layers of nodes, joined by adjustable conductances, with ideal diodes.

        E = sum over resistors of g_ij (v_i - v_j)^2 / 2 - sum over nodes of b_j v_j

    the power that is dissipated; its minimum is Kirchhoff's current law. Diodes keep
    the first half of each hidden layer at v >= 0 and the second half at v <= 0. The
    inputs are driven twice, as gain (u, -u), so that conductances of one sign suffice.

    Args:
        sizes: widths: inputs, hidden layers, outputs.
        gain: of the input voltages; each layer divides the voltage by about its width.
        spread: conductances start uniform in [0, spread / sqrt(fan in)].

    Returns:
        An `EnergyNetwork`; params are `{"conductances": [...], "biases": [...]}`, and
        `project` clips conductances at 0. `respond` is each layer's exact minimiser.

    Raises:
        ValueError: fewer than two sizes, or a gain or spread that is not positive.

    Source: Kendall et al. 2020, arXiv:2006.01981; Scellier 2024, arXiv:2402.11674
    (the exact steps).

    Example:
        >>> network = resistive([4, 6, 2])
        >>> inputs = jnp.ones((3, 4))
        >>> params = network.init(jax.random.key(0), inputs)
        >>> [layer.shape for layer in params["conductances"]]
        [(8, 6), (6, 2)]
    """
    if len(sizes) < 2 or not (gain > 0 and spread > 0):
        raise ValueError(
            "resistive: expected at least two sizes, a positive gain and spread, got "
            f"sizes={list(sizes)}, gain={gain}, spread={spread}."
        )
    widths = [2 * sizes[0], *sizes[1:]]
    last = len(sizes) - 2

    def init(key: jax.Array, inputs: jax.Array) -> Tree:
        dtype = jnp.result_type(inputs, jnp.float32)
        pairs = list(itertools.pairwise(widths))
        keys = jax.random.split(key, len(pairs))
        draws = [
            jax.random.uniform(one, (m, n), dtype, 0, spread / m**0.5)
            for one, (m, n) in zip(keys, pairs, strict=True)
        ]
        return {
            "conductances": draws,
            "biases": [jnp.zeros(n, dtype) for _, n in pairs],
        }

    def start(params: Tree, inputs: jax.Array) -> State:
        biases = params["biases"]
        return [jnp.zeros((len(inputs), len(b)), b.dtype) for b in biases]

    def energy(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        own = inputs.astype(state[0].dtype)  # unsigned integers have no opposite
        below = [gain * jnp.concatenate([own, -own], axis=-1), *state[:-1]]
        total = jnp.zeros((), state[0].dtype)
        layers = zip(
            params["conductances"], params["biases"], below, state, strict=True
        )
        for g, b, u, v in layers:
            ends = jnp.sum(u**2 @ g) + jnp.sum(v**2 * jnp.sum(g, axis=0)[None])
            total = total + ends / 2 - jnp.sum((u @ g + b[None]) * v)
        return total

    def bounded(key: Key, v: jax.Array) -> jax.Array:
        if key == last:
            return v
        is_first = jnp.arange(v.shape[-1])[None] < v.shape[-1] // 2
        return jnp.where(is_first, jnp.maximum(v, 0), jnp.minimum(v, 0))

    def respond(
        params: Tree,
        state: State,
        inputs: jax.Array,
        force: Mapping[Key, jax.Array],
        stiffness: Mapping[Key, Any],
    ) -> State:
        slopes = state_gradient(lambda s: energy(params, s, inputs), state)
        conductances = params["conductances"]
        new = []
        for key, v in enumerate(state):
            total = jnp.sum(conductances[key], axis=0)
            if key < last:
                total = total + jnp.sum(conductances[key + 1], axis=1)
            step = slopes[key] + force.get(key, 0.0)
            total = total[None] + stiffness.get(key, 0.0)
            moved = bounded(key, v - step / jnp.where(total > 0, total, 1))
            # A node without resistors stays; one nudged too far has no minimum.
            moved = jnp.where(total > 0, moved, jnp.where(total < 0, jnp.nan, v))
            new.append(moved.astype(v.dtype))
        return new

    def project(params: Tree) -> Tree:
        clipped = [jnp.maximum(g, 0) for g in params["conductances"]]
        return {**params, "conductances": clipped}

    return EnergyNetwork(
        init=init,
        start=start,
        energy=energy,
        coupling=energy,
        respond=respond,
        outputs=lambda params, state: state[-1],
        output_key=last,
        stiff=True,
        project=project,
        conservative=True,
    )
