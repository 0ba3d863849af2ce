"""Phases of a network's relaxation, and the contrast of their energies.

    free     s_0 = argmin E          nudged   s_b = argmin E + b C

The gradient of the cost at s_0 is the limit of the contrast (Danskin's theorem: states
are held fixed)

    d/dparams sum over phases p of w_p [E(s_p) + b_p C(s_p)],   sum w = 0, sum w b = 1
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import Aux
from bilevel.energy.networks.base import (
    EnergyNetwork,
    Key,
    State,
    keys_of,
    one_number,
    replaced,
    state_gradient,
)
from bilevel.energy.nudges import is_positive
from bilevel.energy.relaxations import Relaxation, Relaxed
from bilevel.energy.relaxations.base import rms, rounding
from bilevel.trees import Tree


class Data(NamedTuple):
    """What all phases of a step share: parameters, inputs `[B, ...]`, targets."""

    params: Tree
    inputs: jax.Array
    targets: jax.Array


def relax(
    network: EnergyNetwork,
    relaxation: Relaxation,
    data: Data,
    state: State,
    key: jax.Array | None = None,
    *,
    cost: Cost | None = None,
    beta: jax.Array | float = 0.0,
    held: Mapping[Key, jax.Array] | None = None,
) -> Relaxed:
    """Relaxes E + beta C from `state`; without `cost`, E.

    Args:
        network: with the energy E.
        relaxation: the solver.
        data: parameters, inputs and targets.
        state: where to begin.
        key: of the state noise.
        cost: C, summed over the examples: beta is the nudge of each.
        beta: of any sign, or complex for a holomorphic network.
        held: entries of the state that stay as given.
    """
    params, inputs, targets = data
    held = dict(held or {})
    _check_keys(network, state, held)
    state = replaced(state, held)

    def apply(state: State, force: dict[Key, jax.Array]) -> State:
        stiffness: dict[Key, Any] = {}
        if cost is not None:
            nudge = _nudge(network, cost, params, state, targets)
            for name, slope in nudge.items():
                force = {**force, name: force.get(name, 0) + beta * slope}
            if cost.curvature is not None and network.stiff:
                stiffness = {network.output_key: beta * cost.curvature}
        new = network.respond(params, state, inputs, force, stiffness)
        return replaced(new, held)

    return relaxation.solve(apply, state, key)


def relax_free(
    network: EnergyNetwork,
    relaxation: Relaxation,
    params: Tree,
    inputs: jax.Array,
    key: jax.Array | None = None,
) -> Relaxed:
    """The free phase, from the network's start."""
    data = Data(params, inputs, jnp.zeros(len(inputs)))
    start = network.start(params, inputs)
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(start)}
    if sizes != {len(inputs)}:
        raise ValueError(
            f"the relaxation of {len(inputs)} inputs must begin with as many states, "
            f"got a start of {sorted(sizes)}: a kept state is for batches of its size."
        )
    return relax(network, relaxation, data, start, key)


def outputs_of(network: EnergyNetwork, relaxation: Relaxation) -> Any:
    """`(params, inputs) -> outputs` at the end of a free phase without noise's key."""

    def apply(params: Tree, inputs: jax.Array) -> jax.Array:
        key = jax.random.key(0) if relaxation.noise else None
        free = relax_free(network, relaxation, params, inputs, key)
        return network.outputs(params, free.state)

    return apply


def relax_at(
    network: EnergyNetwork,
    relaxation: Relaxation,
    data: Data,
    state: State,
    cost: Cost,
    betas: jax.Array,
    key: jax.Array | None,
) -> Relaxed:
    """One nudged phase for each of `betas` `[P]`, side by side; leaves get `[P]`."""
    if jnp.iscomplexobj(betas):
        state = jax.tree.map(lambda x: x.astype(jnp.result_type(x, betas)), state)
    keys = None if key is None else jax.random.split(key, len(betas))

    def one(beta: jax.Array, key: jax.Array | None) -> Relaxed:
        return relax(network, relaxation, data, state, key, cost=cost, beta=beta)

    return jax.vmap(one, in_axes=(0, None if keys is None else 0))(betas, keys)


def relax_clamped(
    network: EnergyNetwork,
    relaxation: Relaxation,
    data: Data,
    state: State,
    cost: Cost,
    betas: jax.Array,
    key: jax.Array | None,
) -> Relaxed:
    """As `relax_at`, but E with the outputs held at o - beta dC/do."""
    outputs = network.outputs(data.params, state)
    slope = jax.grad(lambda o: jnp.sum(cost(o, data.targets)))(outputs)
    keys = None if key is None else jax.random.split(key, len(betas))

    def one(beta: jax.Array, key: jax.Array | None) -> Relaxed:
        held = {network.output_key: outputs - beta * slope}
        return relax(network, relaxation, data, state, key, held=held)

    return jax.vmap(one, in_axes=(0, None if keys is None else 0))(betas, keys)


def nudged_energy(
    network: EnergyNetwork, cost: Cost, data: Data, state: State, beta: Any = 1.0
) -> jax.Array:
    """E + beta C, summed over the examples."""
    outputs = network.outputs(data.params, state)
    nudge = beta * jnp.sum(cost(outputs, data.targets))
    return one_number(network.energy(data.params, state, data.inputs)) + nudge


def contrast(
    network: EnergyNetwork,
    data: Data,
    free: State | None,
    nudged: State,
    weights: jax.Array,
    *,
    cost: Cost | None = None,
    betas: jax.Array | None = None,
) -> Tree:
    """The gradient, a mean over examples, from the states of the phases.

    Args:
        network: with the energy.
        data: parameters, inputs, targets.
        free: s_0, where its weight -sum of `weights` is not zero.
        nudged: s_p, leaves `[P, B, ...]`.
        weights: w_p `[P]`; the real part is taken where they are complex.
        cost: C, where it depends on the parameters.
        betas: b_p `[P]` of the cost.
    """

    def at(params: Tree, state: State, beta: Any) -> jax.Array:
        total = one_number(network.coupling(params, state, data.inputs))
        if cost is not None and network.output_key is None:
            outputs = network.outputs(params, state)
            total = total + beta * jnp.sum(cost(outputs, data.targets))
        return total

    def total(params: Tree) -> jax.Array:
        strengths = weights * 0 if betas is None else betas
        phases = jax.vmap(at, in_axes=(None, 0, 0))(params, nudged, strengths)
        value = jnp.sum(jnp.real(weights * phases))
        if free is not None:
            value = value - jnp.sum(jnp.real(weights)) * at(params, free, 0.0)
        return value / len(data.inputs)

    return jax.grad(total)(data.params)


def report(
    outputs: jax.Array,
    free: Relaxed,
    nudged: Relaxed,
    tolerance: float,
    beta: float | jax.Array,
) -> Aux:
    """What a rule with phases says about them.

    Args:
        outputs: of the free phase.
        free: the free phase.
        nudged: the others, leaves `[P, B, ...]`.
        tolerance: of the way that is left to all phases, and of rounding, relative to
            the response of the layer that moved the least.
        beta: the nudge; one that is traced can be none, or of the wrong sign.
    """
    moved = jax.tree.map(lambda x, y: jnp.abs(x - y[None]), nudged.state, free.state)
    layers = [rms(jax.tree.leaves(moved[key])) for key in keys_of(moved)]
    # Of each layer: a nudge that has just arrived at one moves it little, and more is
    # to come. A NaN compares as False.
    left = jnp.maximum(still_left(free), jnp.max(still_left(nudged)))
    left = jnp.maximum(left, rounding(jax.tree.leaves(free.state)))
    converged = left <= tolerance * jnp.min(jnp.stack(layers))
    converged = converged & is_positive(beta)
    return Aux(
        outputs=outputs,
        state=free.state,
        free_residual=free.residual,
        nudged_residual=jnp.max(nudged.residual),
        displacement=rms(jax.tree.leaves(moved)),
        converged=converged,
        free_steps=free.num_steps,
        nudged_steps=jnp.max(nudged.num_steps),
    )


def still_left(found: Relaxed) -> jax.Array:
    """The way to where a phase leads, at least that of its last sweep."""
    return jnp.maximum(found.residual, found.distance)


def report_from_forward(
    outputs: jax.Array,
    start: State,
    settled: Relaxed,
    tolerance: float,
    beta: float | jax.Array,
) -> Aux:
    """`report` of one phase from the forward pass, where the energy is least."""
    none = jnp.zeros_like(settled.residual)
    free = Relaxed(start, none, jnp.zeros((), jnp.int32), none)
    nudged = jax.tree.map(lambda x: x[None], settled)
    return report(outputs, free, nudged, tolerance, beta)


def phase_keys(
    key: jax.Array | None, *relaxations: Relaxation
) -> list[jax.Array | None]:
    """A key for each phase that has noise, None for the others."""
    if key is None:
        if any(one.noise for one in relaxations):
            raise ValueError(
                "state noise needs a key: call rule(params, inputs, targets, key)."
            )
        return [None] * len(relaxations)
    keys = jax.random.split(key, len(relaxations))
    pairs = zip(keys, relaxations, strict=True)
    return [own if one.noise else None for own, one in pairs]


def _check_keys(network: EnergyNetwork, state: State, held: Mapping[Key, Any]) -> None:
    """A nudge of an entry that is not there would be no nudge, without a word."""
    keys = keys_of(state)
    named = [*held, *([] if network.output_key is None else [network.output_key])]
    unknown = [key for key in named if key not in keys]
    if unknown:
        raise ValueError(
            f"the state has the entries {keys}, and no {unknown[0]!r}, which the "
            "network puts out or a phase holds. Count positions from 0."
        )


def _nudge(
    network: EnergyNetwork,
    cost: Cost,
    params: Tree,
    state: State,
    targets: jax.Array,
) -> dict[Key, jax.Array]:
    """dC/ds, by key; the output's alone where the outputs are one."""
    key = network.output_key
    if key is not None:
        value = lambda outputs: jnp.sum(cost(outputs, targets))
        is_holomorphic = jnp.iscomplexobj(state[key])
        return {key: jax.grad(value, holomorphic=is_holomorphic)(state[key])}
    value = lambda s: jnp.sum(cost(network.outputs(params, s), targets))
    slopes = state_gradient(value, state)
    return {name: slopes[name] for name in keys_of(state)}
