"""A pull-back rule of one's own: finite differences of gradients, as DARTS has it."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.hypergradients import Hypergradient
from bilevel.hypergradients.base import OuterObjective, Pullback, Solved, plain_info


def finite_difference(step_size: float) -> Hypergradient:
    """-step_size [dG/dx(w + e v) - dG/dx(w - e v)] / (2 e), with v = dF/dw.

    The inverse Hessian is taken for `step_size` times the identity, and the product
    with d2G/dx dw is a difference: two gradients, no second derivative.

    Source: Liu, Simonyan and Yang 2019, arXiv:1806.09055, equation 8.
    """

    def pullback(
        solved: Solved, outer_objective: OuterObjective, warm_start: None
    ) -> Pullback:
        del warm_start
        v, w = outer_objective.cotangent, solved.inner
        size = trees.norm(v)
        scale = trees.epsilon(w) ** (1 / 3) * (1 + trees.norm(w))
        e = scale / jnp.where(size > 0, size, 1)
        value, at = solved.problem.oracle.value, solved.differentiated

        def outer_gradient(w: Any) -> Any:
            return jax.grad(lambda x: value(w, at.build(x)))(at.values)

        ahead = outer_gradient(trees.axpy(e, v, w))
        behind = outer_gradient(trees.axpy(-e, v, w))
        change = trees.sub(behind, ahead)
        return Pullback(trees.scale(step_size / (2 * e), change), plain_info())

    return Hypergradient("finite_difference", pullback)
