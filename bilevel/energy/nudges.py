"""What a nudge must be; checked when a rule is made.

A nudge may be an array, traced, to sweep it without compiling anew; it is not checked.
"""

import math

import jax

from bilevel.energy.costs import Cost
from bilevel.energy.networks.base import EnergyNetwork


def check_beta(name: str, beta: float) -> None:
    """Raises `ValueError` unless beta is positive and finite."""
    if isinstance(beta, jax.Array):
        return
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(
            f"{name}: beta must be positive and finite, got {beta}: without a nudge "
            "there is nothing to contrast, and its sign is said by name."
        )


def check_negative(name: str, network: EnergyNetwork, cost: Cost, beta: float) -> None:
    """Raises `ValueError` where a nudge of -beta has no minimum in the output."""
    own, h = network.output_curvature, cost.curvature
    if own is None or h is None or isinstance(beta, jax.Array):
        return
    if beta * h >= own:
        raise ValueError(
            f"{name}: with a nudge of -beta the energy has no minimum inside (it is "
            "unbounded below, unless the output is clipped): its "
            f"curvature in the output is {own} - beta * {h}. Expected beta < {own / h},"
            f' got {beta}; or take nudging="positive".'
        )
