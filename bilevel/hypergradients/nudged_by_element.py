"""Nudges of every element's own: the pull-back of quantisers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import trees
from bilevel.derivatives import mixed_vjp, tilted
from bilevel.hypergradients import stencils
from bilevel.hypergradients.base import (
    OuterObjective,
    Pullback,
    PullbackInfo,
    Solved,
)
from bilevel.hypergradients.rule import Hypergradient
from bilevel.hypergradients.stencils import Stencil
from bilevel.inner_problem import UserFunction
from bilevel.inner_solvers import driver
from bilevel.inner_solvers.driver import InnerInfo
from bilevel.trees import Tree

Tilt = Callable[[Tree, Tree, Tree], Tree]
"""`tilt(inner, outer, cotangent) -> tree like inner`: the nudge of every element."""


def nudged_by_element(tilt: Tilt, stencil: Stencil | None = None) -> Hypergradient:
    """Nudges every element of a *separable* inner problem by a finite t of its own.

    With w_t = argmin of G + <t, w>, t = tilt(w, x, v), the adjoint is, element by
    element,

        one-sided   u = (w_0 - w_t) v / t
        centred     u = (w_-t - w_t) v / (2 t)

    its limit where t = 0, and the pull-back -J' u.  With a quantiser's energy, nudges
    that just cross the well's boundary and one side it is AdaSTE.

    Args:
        tilt: `(inner, outer, cotangent) -> tree like inner`; 0 where the limit is
            meant.
        stencil: of real points, in units of the tilt (beta = 1); None means
            `stencils.centred(1.0)`.

    Returns:
        A `Hypergradient` for reverse mode.  Cost: a warm-started inner solve per node,
        one more for the limit, and 1.5 g.

    What `trustworthy` promises: the relative error against the derivative of the argmin
    is at most `rtol`; finite nudges over a boundary are meant to differ from it.

    Raises:
        ValueError: a stencil of complex points or of a random sign; when it is used, a
            tilt of another tree or shape, or a solver that takes none.

    Source: Le et al. 2022, arXiv:2112.02880 (AdaSTE, equation 10).

    Example:
        >>> rule = nudged_by_element(lambda w, x, v: 0.1 * v)
    """
    stencil = stencils.centred(1.0) if stencil is None else stencil
    if np.iscomplexobj(stencil.points) or stencil.has_random_sign:
        raise ValueError(
            "nudged_by_element: expected a stencil of real points without a random "
            f"sign, got {stencil.name}."
        )
    example = lambda inner, outer, _: (inner, outer, inner)
    return Hypergradient(
        name="nudged_by_element",
        pullback=partial(_pullback, stencil),
        functions=(UserFunction("tilt", tilt, example),),
    )


def _pullback(
    stencil: Stencil, solved: Solved, outer_objective: OuterObjective, warm_start: Any
) -> Pullback:
    """The contrast of adjoints, and -J' u."""
    del warm_start
    problem, inner, differentiated = solved.problem, solved.inner, solved.differentiated
    parameters, cotangent = differentiated.parameters(), outer_objective.cotangent
    tilt = problem.oracle.functions["tilt"]
    tilts = tilt(parameters, inner, parameters.outer, cotangent)
    trees.require_like(tilts, inner, "tilt(...)", "the inner variable")

    def state(t: Tree) -> tuple[Tree, InnerInfo]:
        oracle = tilted(problem.oracle, t)
        return driver.solve(problem.solver, oracle, inner, parameters)

    points = np.asarray(stencil.points) * stencil.beta
    quotients = np.asarray(stencil.shares) / points
    found = [state(trees.scale(float(p), tilts)) for p in points]
    states, infos = [s for s, _ in found], [i for _, i in found]
    if stencils.needs_free(stencil):
        states, quotients = [*states, inner], np.append(quotients, -sum(quotients))
    none = trees.zeros_like(inner)
    slope = jax.jvp(lambda t: state(t)[0], (none,), (cotangent,))[1]

    def element(t: Any, v: Any, s: Any, *ws: Any) -> jax.Array:
        is_limit = t == 0
        terms = [float(q) * w for q, w in zip(quotients, ws, strict=True)]
        change = sum(terms[1:], terms[0])
        return jnp.where(is_limit, -s, -change * (v / jnp.where(is_limit, 1, t)))

    adjoint = jax.tree.map(element, tilts, cotangent, slope, *states)
    pulled = mixed_vjp(
        lambda w, values: problem.oracle.gradient(w, differentiated.build(values)),
        inner,
        differentiated.values,
        adjoint,
    )
    report = PullbackInfo(
        relative_residual=None,
        error=None,
        num_steps=sum([i.num_steps for i in infos[1:]], infos[0].num_steps),
        converged=jnp.all(jnp.stack([i.converged for i in infos])),
        positive_definite=None,
        bias=None,
    )
    return Pullback(trees.scale(-1.0, pulled), report)
