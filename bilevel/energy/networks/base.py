"""What an energy network is: a state that is an argmin, unit by unit solvable."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bilevel.energy.activations import Activation
from bilevel.energy.fenchel_pairs import require_gradient
from bilevel.trees import Tree

Key: TypeAlias = Any
"""A top-level entry of a state: a position (list, tuple) or a name (dict)."""

State: TypeAlias = Any
"""A list, tuple or dict of arrays `[B, ...]`, one for each layer."""

Energy: TypeAlias = Callable[[Tree, State, jax.Array], jax.Array]
"""`(params, state, inputs [B, ...]) -> []`, summed over the examples."""

Project: TypeAlias = Callable[[jax.Array], jax.Array]
"""Onto the bounds of the units, or onto a convex set of the states of an example."""

Respond: TypeAlias = Callable[
    [Tree, State, jax.Array, Mapping[Key, jax.Array], Mapping[Key, Any]], State
]
"""`(params, state, inputs, force, stiffness) -> state`; see `EnergyNetwork`."""


class EnergyNetwork(NamedTuple):
    """A network whose state is s*(params, inputs) = argmin over s of E(params, s, u).

    Attributes:
        init: `(key, inputs [B, ...]) -> params`.
        start: `(params, inputs) -> state`, where a free relaxation begins. For states
            that go on where the last batch's ended:
            `network._replace(start=lambda params, inputs: state)`.
        energy: E, summed over the examples.
        coupling: E without terms of the state alone: all that a derivative in the
            parameters needs. It takes complex states where `holomorphic`.
        respond: every layer's minimiser with all others held, or a step towards it
            (lifted and predictive networks, energies in full):

                respond(s)_k = argmin over x of E(s with x for s_k) + <F_k, x - s_k>
                               + h_k |x - s_k|^2 / 2

            F and h, the force and the stiffness of a nudge, hold the keys that are
            pushed only. s = respond(s) where E + <F, s> is stationary.
        outputs: `(params, state) -> outputs [B, ...]`.
        output_key: the entry of the state that the outputs are; None: a function of it.
        stiff: `respond` takes a stiffness of the output, whose nudge is then solved
            exactly.
        output_curvature: c, where E has c |s|^2 / 2 in the output, or less: the nudge
            with -beta of a squared error is bounded below for beta < c only. None: not
            known.
        holomorphic: `respond` and `coupling` are analytic in the state.
        project: `params -> params`, back to where the energy makes sense; apply it
            after each update.
        conservative: whether `respond` is that of `energy`, so that a contrast of
            phases is the gradient in the limit; False for weights that are not
            symmetric. None: nobody has looked.
    """

    init: Callable[[jax.Array, jax.Array], Tree]
    start: Callable[[Tree, jax.Array], State]
    energy: Energy
    coupling: Energy
    respond: Respond
    outputs: Callable[[Tree, State], jax.Array]
    output_key: Key | None = None
    stiff: bool = False
    output_curvature: float | None = None
    holomorphic: bool = False
    project: Callable[[Tree], Tree] = lambda params: params
    conservative: bool | None = None


def keys_of(state: State) -> list[Key]:
    """The top-level entries of a state: positions, or sorted names."""
    if not isinstance(state, dict | list | tuple):
        raise ValueError(
            "a state must be a list, tuple or dict of arrays, one for each layer, got "
            f"{type(state).__name__}."
        )
    keys = sorted(state) if isinstance(state, dict) else list(range(len(state)))
    for key in keys:
        if isinstance(state[key], dict | list | tuple):
            raise ValueError(
                "a state must be a list, tuple or dict of arrays, one for each layer, "
                f"got {type(state[key]).__name__} at {key!r}; give each of its arrays "
                "an entry of its own."
            )
    return keys


def replaced(state: State, entries: Mapping[Key, Any]) -> State:
    """The state with some of its top-level entries replaced."""
    if isinstance(state, dict):
        return {**state, **entries}
    new = [entries.get(key, entry) for key, entry in enumerate(state)]
    return type(state)(*new) if hasattr(state, "_fields") else type(state)(new)


def is_complex(state: State) -> bool:
    """Whether a state is complex, as in holomorphic equilibrium propagation."""
    return any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(state))


def state_gradient(function: Callable[[State], jax.Array], state: State) -> State:
    """The derivative of a function of the state, complex where the state is."""
    return jax.grad(function, holomorphic=is_complex(state))(state)


def responding(
    name: str,
    activations: Mapping[Key, Activation],
    coupling: Energy,
    slopes_of: Callable[[Tree, State, jax.Array], State] | None = None,
) -> Respond:
    """The response of E = sum_k R_k(s_k) + U(s), U linear in each layer.

        respond(s)_k = f_k(-dU/ds_k - F_k)

    Args:
        name: of the network.
        activations: f_k = (R_k*)' of each layer.
        coupling: U.
        slopes_of: what stands in for dU/ds, where no energy has the response; default
            the derivative of U. Then the response raises `ValueError` for an
            activation that is the derivative of no conjugate.
    """

    def derivative(params: Tree, state: State, inputs: jax.Array) -> State:
        return state_gradient(lambda s: coupling(params, s, inputs), state)

    slopes_at = slopes_of or derivative

    def respond(
        params: Tree,
        state: State,
        inputs: jax.Array,
        force: Mapping[Key, jax.Array],
        stiffness: Mapping[Key, Any],
    ) -> State:
        slopes = slopes_at(params, state, inputs)
        new = {}
        for key in keys_of(state):
            one, drive = activations[key], -slopes[key]
            if slopes_of is None:
                require_gradient(name, one, drive)
            if key in force:
                drive = drive - force[key]
            if key in stiffness:
                c, h = one.curvature, stiffness[key]
                assert c is not None, "stiffness is for quadratic potentials"
                drive = (drive + h * state[key]) * (c / (c + h))
            new[key] = one.apply(drive).astype(state[key].dtype)
        return replaced(state, new)

    return respond


def with_potentials(coupling: Energy, units: Mapping[Key, Activation]) -> Energy:
    """E = sum_k R_k(s_k) + U(s) from U."""

    def energy(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        total = coupling(params, state, inputs)
        for key, one in units.items():
            assert one.potential is not None
            total = total + jnp.sum(one.potential(state[key]))
        return total

    return energy


def require_potential(name: str, one: Activation) -> None:
    """Raises `ValueError` for an activation that is no argmin."""
    if one.potential is None or one.conjugate is None:
        raise ValueError(
            f"{name}: the activation {one.name!r} has no potential and conjugate (one "
            "that is not monotone can have none), so that no energy has it as its "
            "response. Take one with both (tanh, relu, sigmoid)."
        )


def one_number(value: Any) -> jax.Array:
    """The energy as it is; `ValueError` where it is not one number for the batch."""
    if jnp.shape(value) != ():
        raise ValueError(
            "an energy must be one number, the sum over the examples, got the shape "
            f"{jnp.shape(value)}; where it is one number for each example, return "
            "their sum: `(params, state, inputs) -> jnp.sum(each)`."
        )
    return value
