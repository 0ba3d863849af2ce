"""Weights as an argmin with the core's nudged pull-back."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from bilevel import hypergradients, inner_solvers
from bilevel.argmin import argmin
from bilevel.hypergradients import stencils
from bilevel.quantized.energies import Energy
from bilevel.trees import Tree

Weights: TypeAlias = Callable[[jax.Array, Tree], jax.Array]
"""`(x, strength) -> w`."""
Tilt: TypeAlias = Callable[[jax.Array, Tree, jax.Array], jax.Array]
"""`(x, strength, g) -> t`: beta g, with a beta of each weight's own; 0 is the limit."""


def nudged_argmin(energy: Energy, tilt: Tilt, *, centred: bool = False) -> Weights:
    """s(x) = argmin over w of G(w, x), and its pull-back by finite nudges.

    x enters G as -w x (see `energies`). A tilt t of the inner objective is then a shift
    of x, and with t = beta g the core's nudged rule is

        h = [s(x) - s(x - beta g)] / beta,   s'(x) g where t = 0

    or, centred, h = [s(x + beta g) - s(x - beta g)] / (2 beta). Its second derivative
    is not symmetric where t is not 0: no CG through it.

    Args:
        energy: G with its minimiser s; of each weight, unless all tilts are 0.
        tilt: chooses t = beta g of each element, a beta of its own; 0 for the limit.
        centred: nudge to both sides.

    Returns:
        `(x, strength) -> w`, for reverse mode; the strength gets no gradient. Cost: s
        twice (centred: three times) and its derivative once.

    Source: Le et al. 2022, arXiv:2112.02880, equations 8 to 10; the rule is
    `hypergradients.nudged_by_element`.
    """

    def shifted(start: Tree, outer: Any, batch: None, tilts: jax.Array) -> jax.Array:
        del start, batch
        x, strength = outer
        return energy.minimiser(x - tilts, strength)

    def chosen(inner: jax.Array, outer: Any, cotangent: jax.Array) -> jax.Array:
        del inner
        x, strength = outer
        return tilt(x, strength, cotangent).astype(cotangent.dtype)

    stencil = stencils.centred(1.0) if centred else stencils.one_sided(1.0)
    solve = argmin(
        lambda w, outer, _: jnp.sum(energy.finite(w, *outer)),
        inner_solvers.closed_form(shifted, tilted=True, differentiable=True),
        hypergradients.nudged_by_element(chosen, stencil),
        on_untrustworthy="ignore",
    )

    def weights(x: jax.Array, strength: Tree) -> jax.Array:
        return solve(jnp.zeros_like(x), (x, jax.lax.stop_gradient(strength)))[0]

    return weights
