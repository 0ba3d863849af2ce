"""Nudged pull-backs: equilibrium propagation, penalty methods."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import checks, trees
from bilevel.derivatives import Oracle, penalised, tilted
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
from bilevel.iteration import iterate
from bilevel.trees import Tree


def nudged(
    stencil: Stencil | float,
    *,
    linearised: bool = True,
    normalise: bool = True,
    side_by_side: bool = False,
) -> Hypergradient:
    """Compares the solution with those of nudged inner problems; no second derivatives.

    With w_b = argmin of G + b F (or its linearisation G + b <v, w>), the pull-back is a
    difference quotient of dG/dx(w_b) at b = 0, by the nodes of a stencil:

        one-sided   [dG/dx(w_b) - dG/dx(w_0)] / b           error O(b)
        centred     [dG/dx(w_b) - dG/dx(w_-b)] / (2 b)      error O(b^2)

    and others in `hypergradients.stencils`.  With an energy as G it is equilibrium
    propagation; with F in full it is the gradient of the value function
    min_w (G + b F) / b (Danskin), the penalty method F2SA.

    Args:
        stencil: of the nudges; a number b > 0 means `stencils.centred(b)`.
        linearised: nudge with <v, w>.  Otherwise with the outer function, which
            `argmin` must be given as `outer_objective`; only multiples of its gradient
            can then be pulled back, any other cotangent gives an untrustworthy result.
        normalise: divide b by |v| (by the norm of the gradient of F), so that the
            result is linear in the scale of the loss.  Switch it off where b has a
            meaning of its own, per sample, say: a mean over a batch of size B makes
            that b = B times the sample's.
        side_by_side: solve all nudged problems at once (`vmap`): as many states in
            memory as there are nodes, and as many steps as the slowest takes.
            Otherwise one after the other.

    Returns:
        A `Hypergradient` for reverse mode.  Cost: a warm-started inner solve per node
        and 1 g for each state compared.

    What `trustworthy` promises: the relative error against the derivative of the argmin
    (b -> 0) is at most `rtol`, bias of the finite nudge and residuals of the nudged
    states included.  `info.bias` estimates the former alone, relative to the gradient,
    where the stencil has an estimate.

    Raises:
        ValueError: a stencil of complex points, which needs complex states, or of a
            random sign, which needs a key; when it is used, no outer objective where
            one is needed, or a solver that cannot be nudged.

    Source: Scellier and Bengio 2017, arXiv:1602.05179 (one-sided); Laborieux et al.
    2021, arXiv:2006.03824 (centred); Zucchet and Sacramento 2022, arXiv:2205.03076
    (bilevel view); Kwon et al. 2023 (F2SA).

    Example:
        >>> rule = nudged(0.01)
        >>> rule = nudged(stencils.richardson(stencils.one_sided(0.1)))
    """
    if isinstance(stencil, Stencil):
        chosen = stencil
    elif checks.is_number(stencil):
        chosen = stencils.centred(stencil)
    else:
        raise ValueError(
            "nudged: expected a stencil (stencils.centred(0.01), say) or a number, got "
            f"{type(stencil).__name__}. A nudge of every element's own is "
            "nudged_by_element(tilt)."
        )
    _require_real(chosen)
    # Its size may be a value that is being differentiated, or traced.
    size = UserFunction("beta", lambda: chosen.beta, lambda *_: ())
    pullback = partial(_pullback, chosen, linearised, normalise, side_by_side)
    return Hypergradient("nudged", pullback, functions=(size,))


def _require_real(stencil: Stencil) -> None:
    if np.iscomplexobj(stencil.points) or stencil.has_random_sign:
        raise ValueError(
            f"nudged: {stencil.name} has complex nudges, or a sign from a key, neither "
            "of which this rule has. Take a stencil of real points, or the rules of "
            "bilevel.energy."
        )


def _pullback(
    stencil: Stencil,
    linearised: bool,
    normalise: bool,
    side_by_side: bool,
    solved: Solved,
    outer_objective: OuterObjective,
    warm_start: Any,
) -> Pullback:
    del warm_start
    if solved.problem.solver.unknowns is not None:
        raise ValueError(
            "nudged compares derivatives of the inner objective, in which the "
            "constraints of this inner solver do not appear: expected a solver "
            "without multipliers, or another rule, hypergradients.implicit() say."
        )
    parameters = solved.differentiated.parameters()
    beta = solved.problem.oracle.functions["beta"](parameters)
    stencil = stencil._replace(beta=beta)
    nudge = (_linear_nudge if linearised else _full_nudge)(solved, outer_objective)
    size = nudge.size if normalise else jnp.ones_like(nudge.size)
    return _contrast(solved, nudge, stencil, size, side_by_side)


class _Nudge(NamedTuple):
    """A family of inner problems, one for each strength s."""

    oracle: Callable[[jax.Array], Oracle]
    gradient: Callable[[Tree, jax.Array], Tree]  # (state, s) -> what is contrasted
    size: jax.Array  # the nudge s changes the inner gradient by about s * size
    factor: jax.Array  # of the result


def _linear_nudge(solved: Solved, outer_objective: OuterObjective) -> _Nudge:
    """G + s <v, w>."""
    oracle, tilt = solved.problem.oracle, outer_objective.cotangent
    size = trees.norm(tilt)

    def gradient(state: Tree, s: jax.Array) -> Tree:
        del s
        return _outer_gradient(solved, state)

    return _Nudge(
        oracle=lambda s: tilted(oracle, trees.scale(s, tilt)),
        gradient=gradient,
        size=jnp.where(size > 0, size, 1),
        factor=jnp.ones_like(size),
    )


def _full_nudge(solved: Solved, outer_objective: OuterObjective) -> _Nudge:
    """G + s F; what is contrasted is the derivative of its minimum (Danskin)."""
    function, differentiated = outer_objective.function, solved.differentiated
    if function is None:
        raise ValueError(
            "nudged(linearised=False) nudges with the outer function itself, which "
            "jax.grad does not reveal: pass it as argmin(..., outer_objective=...), or "
            "use value_and_hypergradient."
        )
    slope = jax.grad(function)(solved.inner, differentiated.parameters())
    squared, cotangent = trees.dot(slope, slope), outer_objective.cotangent
    safe = jnp.where(squared > 0, squared, 1)

    def explicit(state: Tree) -> Tree:
        at = lambda values: function(state, differentiated.build(values))
        return jax.grad(at)(differentiated.values)

    free = explicit(solved.inner)

    def gradient(state: Tree, s: jax.Array) -> Tree:
        # The caller adds dF/dx at the free state, so only its change belongs here.
        change = trees.sub(explicit(state), free)
        return trees.axpy(s, change, _outer_gradient(solved, state))

    return _Nudge(
        oracle=lambda s: penalised(solved.problem.oracle, function, s),
        gradient=gradient,
        size=jnp.sqrt(safe),
        # Under jax.grad the cotangent is a multiple of dF/dw, 1 otherwise.
        factor=jnp.where(squared > 0, trees.dot(cotangent, slope) / safe, 0),
    )


def _outer_gradient(solved: Solved, state: Tree) -> Tree:
    """dG/dx at a state, the state held fixed."""
    value, differentiated = solved.problem.oracle.value, solved.differentiated
    at = lambda values: value(state, differentiated.build(values))
    return jax.grad(at)(differentiated.values)


class _Sample(NamedTuple):
    gradient: Tree  # what is contrasted, at the nudged state
    residual: jax.Array  # of the nudged state, relative to the nudge
    num_steps: jax.Array
    converged: jax.Array


def _contrast(
    solved: Solved,
    nudge: _Nudge,
    stencil: Stencil,
    size: jax.Array,
    side_by_side: bool,
) -> Pullback:
    """The difference quotient over the nudged states, its bias and convergence."""
    inner, parameters = solved.inner, solved.differentiated.parameters()
    solver = solved.problem.solver
    # The differences in units of beta / size.
    strengths = stencils.nodes(stencil, size.dtype) / size

    def at(s: jax.Array) -> _Sample:
        state, info = driver.solve(solver, nudge.oracle(s), inner, parameters)
        residual = info.residual_norm / (jnp.abs(s) * nudge.size)
        gradient = nudge.gradient(state, s)
        return _Sample(gradient, residual, info.num_steps, info.converged)

    def one(place: jax.Array) -> tuple[jax.Array, _Sample]:
        return place + 1, at(strengths[place])

    if side_by_side:
        samples = jax.vmap(at)(strengths)
    else:
        count = len(stencil.points)
        first = jnp.zeros((), jnp.int32)
        samples = iterate(one, first, num_steps=count, history=True)[1]
    free = nudge.gradient(inner, jnp.zeros_like(strengths[0]))
    total = partial(_weighted, samples.gradient, free)
    result = total(stencils.weights(stencil, strengths))
    bias = None
    if stencil.lower is not None:
        coarse = total(stencils.weights(stencil, strengths, lower=True))
        gap = trees.norm(trees.sub(result, coarse))
        bias = _ratio(gap, trees.norm(result)) ** stencil.power
    info = PullbackInfo(
        relative_residual=jnp.max(samples.residual),
        error=None,
        num_steps=jnp.sum(samples.num_steps),
        converged=jnp.all(samples.converged),
        positive_definite=None,
        bias=bias,
    )
    return Pullback(trees.scale(nudge.factor, result), info)


def _weighted(gradients: Tree, free: Tree, weights: jax.Array) -> Tree:
    """The sum of w_j [g_j - g_0]: of differences, which are small."""

    def leaf(g: jax.Array, g0: jax.Array) -> jax.Array:
        total = jnp.tensordot(weights, (g - g0[None]).astype(weights.dtype), axes=1)
        return total.astype(g0.dtype)

    return jax.tree.map(leaf, gradients, free)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
