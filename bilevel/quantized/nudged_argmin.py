"""Weights as an argmin with the core's nudged pull-back."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from bilevel import hypergradients, inner_solvers
from bilevel.argmin import argmin
from bilevel.trees import Tree

Solution: TypeAlias = Callable[[jax.Array, Tree], jax.Array]
"""`s(x, theta) -> w`, the argmin over w of G(w, x)."""
Tilt: TypeAlias = Callable[[jax.Array, Tree, jax.Array], jax.Array]
"""`(x, theta, g) -> t`: beta g, with a beta of each weight's own; 0 is the limit."""


def nudged_argmin(solution: Solution, tilt: Tilt, *, centred: bool = False) -> Solution:
    """s(x) = argmin over w of G(w, x), and its pull-back by finite nudges.

    x enters G as -w x: in mirror form, Psi(w) - w x, or in proximal form,
    (w - x)^2 / 2 + R(w). A tilt t of the inner objective is then a shift of x, and with
    t = beta g the core's nudged rule is

        h = [s(x) - s(x - beta g)] / beta,   s'(x) g where t = 0

    or, centred, h = [s(x + beta g) - s(x - beta g)] / (2 beta). Its second derivative
    is not symmetric where t is not 0: no CG through it.

    Args:
        solution: s; elementwise, unless all tilts are 0.
        tilt: chooses t = beta g of each element, a beta of its own; 0 for the limit.
        centred: nudge to both sides.

    Returns:
        `(x, theta) -> w`, for reverse mode; theta gets no gradient. Cost: s twice
        (centred: three times) and its derivative once.

    Source: Le et al. 2022, arXiv:2112.02880, equations 8 to 10; the rule is
    `hypergradients.nudged(tilt=...)`.
    """

    def shifted(start: Tree, outer: Any, batch: None, tilts: jax.Array) -> jax.Array:
        del start, batch
        x, theta = outer
        return solution(x - tilts, theta)

    def chosen(inner: jax.Array, outer: Any, cotangent: jax.Array) -> jax.Array:
        del inner
        x, theta = outer
        return tilt(x, theta, cotangent).astype(cotangent.dtype)

    # The part of G that x enters, which is all that a pull-back needs of it.
    solve = argmin(
        lambda w, outer, _: -jnp.sum(w * outer[0]),
        inner_solvers.closed_form(shifted, tilted=True, differentiable=True),
        hypergradients.nudged(tilt=chosen, centred=centred),
        on_untrustworthy="ignore",
    )

    def weights(x: jax.Array, theta: Tree) -> jax.Array:
        return solve(jnp.zeros_like(x), (x, jax.lax.stop_gradient(theta)))[0]

    return weights
