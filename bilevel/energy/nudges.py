"""What a nudge must be; checked when a rule is made, and where that cannot be, told.

A nudge may be traced, to sweep it without compiling anew; then it is not checked.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.energy.costs import Cost, require_cost
from bilevel.energy.networks.base import EnergyNetwork
from bilevel.known import known


def check_beta(name: str, beta: float | jax.Array) -> None:
    """Raises `ValueError` unless beta is positive and finite, every one of an array."""
    given = known(beta)
    if given is not None and not (np.all(given > 0) and np.all(np.isfinite(given))):
        raise ValueError(
            f"{name}: beta must be positive and finite, got {beta}: without a nudge "
            "there is nothing to contrast, and its sign is said by name."
        )


def is_positive(beta: float | jax.Array) -> jax.Array:
    """Whether every nudge is positive and finite, `[]` bool, traced or not."""
    given = jnp.asarray(beta)
    return jnp.all((given > 0) & jnp.isfinite(given))


def check_negative(
    name: str, network: EnergyNetwork, cost: Cost, beta: float | jax.Array
) -> None:
    """Raises `ValueError` where a nudge of -beta has no minimum in the output."""
    require_cost(name, cost)
    own, h = network.output_curvature, cost.curvature
    given = known(beta)
    if own is None or h is None or given is None:
        return
    if np.any(given * h >= own):
        raise ValueError(
            f"{name}: with a nudge of -beta the energy has no minimum inside (it is "
            "unbounded below, unless the output is clipped): its "
            f"curvature in the output is {own} - beta * {h}. Expected beta < {own / h},"
            f' got {beta}; or take nudging="positive".'
        )


def are_bounded(network: EnergyNetwork, cost: Cost, betas: jax.Array) -> jax.Array:
    """Whether no nudge takes the minimum in the output away, `[]` bool.

    True where a curvature is not known: there the sweeps do not settle.
    """
    own, h = network.output_curvature, cost.curvature
    if own is None or h is None:
        return jnp.ones((), bool)
    return jnp.all(own + jnp.real(betas) * h > 0)
