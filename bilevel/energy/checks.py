"""One identity that was checked, and how."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.energy.networks.base import EnergyNetwork, State
from bilevel.energy.phases import Data


class Check(NamedTuple):
    """An identity.

    Attributes:
        name: of the identity.
        expected: in words.
        found: likewise.
        passed: whether it holds.
    """

    name: str
    expected: str
    found: str
    passed: bool


def close(name: str, error: float, bound: float) -> Check:
    """An equality, by its relative error."""
    return Check(name, f"<= {bound:.0e}", f"{error:.1e}", error <= bound)


def order(
    name: str,
    betas: Sequence[float],
    errors: Sequence[float],
    expected: float,
    *,
    slack: float = 0.2,
    exact: float = 1e-9,
) -> Check:
    """The order of an error in beta: its slope in logarithms, at the smallest betas.

    Errors below `exact` have no slope left, and pass: where an activation is piecewise
    linear a rule is exact once beta is too small for any unit to reach a kink.
    """
    wanted = f"beta^{expected:g}"
    if all(error <= exact for error in errors[-2:]):
        below = f" from {betas[-2]:g} on" if max(errors) > exact else ""
        return Check(name, wanted, f"exact{below}, {max(errors[-2:]):.1e}", True)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.diff(np.log(errors)) / np.diff(np.log(betas))
    found = f"beta^{slopes[-1]:.2f}, {errors[-1]:.1e} at {betas[-1]:g}"
    return Check(name, wanted, found, bool(abs(slopes[-1] - expected) <= slack))


def left_out(name: str, why: str) -> Check:
    """An identity that does not apply."""
    return Check(name, "", f"left out: {why}", True)


def is_a_sum(network: EnergyNetwork, data: Data, state: State) -> Check:
    """Whether the energy of a batch is the sum over its examples.

    It is that of the difference between two states, so that a term which is the same
    for all states does not matter. The second has the first's examples in another
    order, and so keeps to all bounds.

    Args:
        network: with the energy.
        data: parameters, inputs, targets.
        state: of the batch.
    """
    name = "the energy of a batch = the sum over its examples"
    other = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), state)

    @jax.jit
    def difference(state: State, other: State, inputs: jax.Array) -> jax.Array:
        at = lambda s: network.energy(data.params, s, inputs)
        return at(other) - at(state)

    alone = jax.tree.map(lambda x: x[:, None], (state, other, data.inputs))
    each = jax.vmap(difference)(*alone)
    size = float(jnp.max(jnp.abs(each)))
    if len(data.inputs) < 2 or size == 0:
        return left_out(name, "there is one example, or all are equal")
    whole = difference(state, other, data.inputs)
    return close(name, abs(float(whole - jnp.sum(each))) / size, 1e-8)
