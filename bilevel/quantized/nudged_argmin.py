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


def nudged_argmin(
    solution: Solution, *, tilt: Tilt | None = None, beta: float = 0.0
) -> Solution:
    """s(x) = argmin over w of G(w, x), and its pull-back by finite nudges.

    x enters G as -w x: in mirror form, Psi(w) - w x, or in proximal form,
    (w - x)^2 / 2 + R(w). A tilt t of the inner objective is then a shift of x, and with
    t = beta g the core's nudged rule is

        h = [s(x) - s(x - beta g)] / beta,   s'(x) g for beta = 0

    Args:
        solution: s; elementwise, if there is a tilt.
        tilt: chooses t = beta g of each element, a beta of its own; 0 for the limit.
        beta: one for all, where there is no tilt.

    Returns:
        `(x, theta) -> w`; theta gets no gradient. Cost: s twice, and with a tilt or
        beta = 0 its derivative once.

    Source: Le et al. 2022, arXiv:2112.02880, equations 8 to 10; the rule is
    `hypergradients.nudged`.
    """

    def shifted(start: Tree, outer: Any, batch: None, tilts: jax.Array) -> jax.Array:
        del start, batch
        x, theta = outer
        return solution(x - tilts, theta)

    def chosen(inner: jax.Array, outer: Any, cotangent: jax.Array) -> jax.Array:
        del inner
        x, theta = outer
        if tilt is None:
            return jnp.zeros_like(cotangent)
        return tilt(x, theta, cotangent).astype(cotangent.dtype)

    if beta:
        rule = hypergradients.nudged(beta, centred=False, normalise=False)
    else:
        rule = hypergradients.nudged(tilt=chosen)
    # The part of G that x enters, which is all that a pull-back needs of it.
    solve = argmin(
        lambda w, outer, _: -jnp.sum(w * outer[0]),
        inner_solvers.closed_form(shifted, tilted=True, differentiable=True),
        rule,
        on_untrustworthy="ignore",
    )

    def weights(x: jax.Array, theta: Tree) -> jax.Array:
        return solve(jnp.zeros_like(x), (x, jax.lax.stop_gradient(theta)))[0]

    return weights
