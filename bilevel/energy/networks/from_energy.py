"""Networks from an energy in full, which their user writes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from bilevel import trees
from bilevel.energy.activations import Activation
from bilevel.energy.fenchel_pairs import require_gradient
from bilevel.energy.networks.base import (
    Energy,
    EnergyNetwork,
    Key,
    Project,
    State,
    keys_of,
    one_number,
    replaced,
    state_gradient,
)
from bilevel.trees import Tree


def from_energy(
    energy: Energy,
    init: Callable[[jax.Array, jax.Array], Tree],
    start: Callable[[Tree, jax.Array], State],
    output: Key | Callable[[Tree, State], jax.Array],
    *,
    curvature: float = 1.0,
    project: Project | Mapping[Key, Project] | None = None,
    holomorphic: bool = False,
) -> EnergyNetwork:
    """A network from an energy in full, relaxed by projected gradient steps.

        respond(s)_k = project(s_k - (dE/ds_k + F_k) / (curvature + h_k))

    Args:
        energy: `(params, state, inputs [B, ...]) -> []`, summed over the examples.
        init: `(key, inputs) -> params`; the network's looks at the energy, too.
        start: `(params, inputs) -> state`, a list, tuple or dict of arrays `[B, ...]`.
        output: the entry of the state that the network puts out (a position from 0, or
            a name), or a function
            `(params, state) -> outputs [B, ...]`.
        curvature: at least the largest eigenvalue of any layer's d2E/ds_k2, so that a
            step decreases E. Where it is equal, as in |s_k|^2 / 2 - <s_k, a_k>, the
            step is the layer's exact minimiser.
        project: onto the bounds of the units, `lambda s: clip(s, 0, 1)`, or onto a
            convex set of the states of an example;
            or a mapping with one for each entry that has bounds. Rules without a
            finite nudge learn nothing from an output that starts at a bound: leave the
            output unbounded, or nudge it with a beta of about 0.5.
        holomorphic: the energy is analytic in complex states; not with bounds.

    Raises:
        ValueError: the curvature is not positive; bounds of a holomorphic energy; when
            it is traced, bounds of an entry that is not there, a `project` that is no
            projection onto a convex set (its Jacobian is not symmetric), or an energy
            that is not one number; when it is initialised, one that is a mean over the
            examples.

    Example:
        >>> def quadratic(params, state, inputs):
        ...     (s,) = state
        ...     return jnp.sum(s**2 / 2 - s * (inputs @ params))
        >>> network = from_energy(
        ...     quadratic,
        ...     init=lambda key, inputs: jax.random.normal(key, (4, 2)),
        ...     start=lambda params, inputs: [jnp.zeros((len(inputs), 2))],
        ...     output=0,
        ... )
    """
    if not curvature > 0:
        raise ValueError(f"from_energy: curvature must be positive, got {curvature}.")
    if holomorphic and project is not None:
        raise ValueError(
            "from_energy: states with bounds are not analytic; leave project out, or "
            "take holomorphic=False."
        )

    def total(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        return one_number(energy(params, state, inputs))

    def respond(
        params: Tree,
        state: State,
        inputs: jax.Array,
        force: Mapping[Key, jax.Array],
        stiffness: Mapping[Key, Any],
    ) -> State:
        _check_project(project, state)
        slopes = state_gradient(lambda s: total(params, s, inputs), state)
        new = {}
        for key in keys_of(state):
            step = slopes[key] + force[key] if key in force else slopes[key]
            moved = state[key] - step / (curvature + stiffness.get(key, 0.0))
            own = project.get(key) if isinstance(project, Mapping) else project
            bounded = moved if own is None else own(moved)
            if own is not None:  # a projection onto a convex set is a gradient, too
                require_gradient("from_energy", Activation("project", own), moved)
            new[key] = bounded.astype(state[key].dtype)
        return replaced(state, new)

    key = None if callable(output) else output

    def outputs(params: Tree, state: State) -> jax.Array:
        if callable(output):
            return output(params, state)  # pyright: ignore[reportReturnType]
        return state[output]

    network = EnergyNetwork(
        init=init,
        start=start,
        energy=total,
        coupling=total,
        respond=respond,
        outputs=outputs,
        output_key=key,
        stiff=key is not None,
        output_curvature=None if key is None else curvature,
        holomorphic=holomorphic,
        conservative=True,
    )

    def checked_init(key: jax.Array, inputs: jax.Array) -> Tree:
        params = init(key, inputs)
        require_sum(network, params, inputs)
        return params

    return network._replace(init=checked_init)


def require_sum(network: EnergyNetwork, params: Tree, inputs: jax.Array) -> None:
    """Raises `ValueError` for an energy that is a mean over the examples.

    Its slopes tell, for the inputs and for the inputs twice, at the network's start and
    one response later. Nothing is said where they are traced or zero.

    Args:
        network: with the energy.
        params: of the network.
        inputs: `[B, ...]`.
    """

    def size(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        at = lambda s: network.energy(params, s, inputs)
        return trees.norm(state_gradient(at, state))

    @jax.jit
    def ratios(params: Tree, inputs: jax.Array) -> list[jax.Array]:
        twice = lambda tree: jax.tree.map(lambda x: jnp.concatenate([x, x]), tree)
        start = network.start(params, inputs)
        states = start, network.respond(params, start, inputs, {}, {})
        both = twice(inputs)
        return [size(params, twice(s), both) / size(params, s, inputs) for s in states]

    if any(isinstance(x, core.Tracer) for x in jax.tree.leaves((params, inputs))):
        return
    told = [float(ratio) for ratio in ratios(params, inputs)]
    told = [ratio for ratio in told if math.isfinite(ratio)]
    # Of twice the examples the norm is sqrt(2) times as large; of a mean 1 / sqrt(2).
    if told and all(abs(ratio * 2**0.5 - 1) < 1e-2 for ratio in told):
        raise ValueError(
            "the energy must be summed over the examples, and is a mean: with twice "
            "the examples each of them has half the force. The nudge beta is that of "
            "each example's cost. Return jnp.sum in place of jnp.mean."
        )


def _check_project(project: Any, state: State) -> None:
    """Bounds of an entry that is not there would be no bounds, without a word."""
    if not isinstance(project, Mapping):
        return
    keys = keys_of(state)
    unknown = [key for key in project if key not in keys]
    if unknown:
        raise ValueError(
            f"from_energy: project has {unknown[0]!r}, which is not among the entries "
            f"of the state, {keys}."
        )
