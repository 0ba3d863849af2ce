"""Nudged pull-backs: equilibrium propagation, penalty methods, AdaSTE."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import Oracle, mixed_vjp, penalised, tilted
from bilevel.hypergradients.base import (
    OuterObjective,
    Pullback,
    PullbackInfo,
    Solved,
)
from bilevel.hypergradients.rule import Hypergradient
from bilevel.inner_problem import UserFunction
from bilevel.inner_solvers import driver
from bilevel.inner_solvers.driver import InnerInfo
from bilevel.trees import Tree

Tilt = Callable[[Tree, Tree, Tree], Tree]
"""`tilt(inner, outer, cotangent) -> tree like inner`: the nudge of every element."""


def nudged(
    beta: float | None = None,
    *,
    centred: bool = True,
    linearised: bool = True,
    richardson: bool = False,
    normalise: bool = True,
    tilt: Tilt | None = None,
) -> Hypergradient:
    """Compares the solution with that of a nudged inner problem; no second derivatives.

    With w_b = argmin of G + b F (or its linearisation G + b <v, w>), the pull-back is

        one-sided   [dG/dx(w_b) - dG/dx(w_0)] / b           error O(b)
        centred     [dG/dx(w_b) - dG/dx(w_-b)] / (2 b)      error O(b^2)

    With an energy as G it is equilibrium propagation; with F in full it is the gradient
    of the value function min_w (G + b F) / b (Danskin), the penalty method F2SA.

    With `tilt`, every element of a *separable* inner problem gets its own finite nudge
    t = tilt(w, x, v): the adjoint is u = (w_-t - w_t) v / (2 t), with centred=False
    (w_0 - w_t) v / t, its limit where t = 0, and the pull-back -J' u.  With a
    quantiser's energy, nudges that just cross the well's boundary and centred=False
    it is AdaSTE.

    Args:
        beta: b; negative for a one-sided nudge away from the target.  Needed, unless
            `tilt` takes its place.
        centred: both signs of beta, or of the tilt, instead of one.
        linearised: nudge with <v, w>.  Otherwise with the outer function, which
            `argmin` must be given as `outer_objective`; only multiples of its gradient
            can then be pulled back, any other cotangent gives an untrustworthy result.
        richardson: extrapolate from b and b / 2 to b = 0; the error gains one order
            (two if centred) and is estimated well.  Twice the nudged solves.
        normalise: divide b by |v| (by the norm of the gradient of F), so that the
            result is linear in the scale of the loss.  Switch it off where b has a
            meaning of its own, per sample, say: a mean over a batch of size B makes
            that b = B times the sample's.
        tilt: chooses the nudge of every element; goes with `centred` only.

    Returns:
        A `Hypergradient` for reverse mode.  Cost: a warm-started inner solve per nudge
        (1, 2 or 4) and 1 g for each state compared.

    What `trustworthy` promises: the relative error against the derivative of the argmin
    (b -> 0) is at most `rtol`, bias of the finite nudge and residuals of the nudged
    states included.  `info.bias` estimates the former alone, relative to the gradient.

    Raises:
        ValueError: beta is 0, not finite, or negative with `centred`; `tilt` together
            with others but `centred`; no outer objective where one is needed; a solver
            that cannot be nudged.

    Source: Scellier and Bengio 2017, arXiv:1602.05179 (one-sided); Laborieux et al.
    2021, arXiv:2006.03824 (centred); Zucchet and Sacramento 2022, arXiv:2205.03076
    (bilevel view); Kwon et al. 2023 (F2SA); Le et al. 2022, arXiv:2112.02880 (AdaSTE,
    equation 10).

    Example:
        >>> rule = nudged(0.01, centred=True)
    """
    plain = linearised and normalise and not richardson
    _check(beta, centred, tilt, plain)

    functions = ()
    if tilt is not None:
        example = lambda inner, outer, _: (inner, outer, inner)
        functions = (UserFunction("tilt", tilt, example),)

    def pullback(
        solved: Solved, outer_objective: OuterObjective, warm_start: Any
    ) -> Pullback:
        del warm_start
        if solved.problem.solver.unknowns is not None:
            raise ValueError(
                "nudged compares derivatives of the inner objective, in which the "
                "constraints of this inner solver do not appear: expected a solver "
                "without multipliers, or another rule, hypergradients.implicit() say."
            )
        if tilt is not None:
            return _by_element(solved, outer_objective.cotangent, centred)
        assert beta is not None
        make = _linear_nudge if linearised else _full_nudge
        nudge = make(solved, outer_objective)
        strength = beta / nudge.size if normalise else jnp.full_like(nudge.size, beta)
        return _contrast(solved, nudge, strength, centred, richardson)

    return Hypergradient("nudged", pullback, functions=functions)


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
    gradient: Tree
    residual: jax.Array  # of the nudged state, relative to the nudge
    num_steps: jax.Array
    converged: jax.Array


def _contrast(
    solved: Solved,
    nudge: _Nudge,
    strength: jax.Array,
    centred: bool,
    richardson: bool,
) -> Pullback:
    inner, parameters = solved.inner, solved.differentiated.parameters()
    solver = solved.problem.solver

    def at(s: jax.Array) -> _Sample:
        state, info = driver.solve(solver, nudge.oracle(s), inner, parameters)
        residual = info.residual_norm / (jnp.abs(s) * nudge.size)
        gradient = nudge.gradient(state, s)
        return _Sample(gradient, residual, info.num_steps, info.converged)

    free = nudge.gradient(inner, jnp.zeros_like(strength))

    def estimate(s: jax.Array) -> tuple[Tree, jax.Array | None, list[_Sample]]:
        """The pull-back with nudge s, the estimate of its bias, and the samples."""
        plus = at(s)
        forward = trees.scale(1 / s, trees.sub(plus.gradient, free))
        if not centred:
            return forward, None, [plus]
        minus = at(-s)
        backward = trees.scale(1 / s, trees.sub(free, minus.gradient))
        mean = trees.scale(0.5 / s, trees.sub(plus.gradient, minus.gradient))
        half_gap = trees.norm(trees.sub(forward, backward)) / 2
        # The gap is the one-sided error, of first order; its square is of the order
        # of the centred one.
        return mean, _ratio(half_gap, trees.norm(mean)) ** 2, [plus, minus]

    result, bias, samples = estimate(strength)
    if richardson:
        halved, _, more = estimate(strength / 2)
        weight = 4.0 / 3.0 if centred else 2.0
        coarse = result
        result = trees.axpy(weight, trees.sub(halved, coarse), coarse)
        gap = trees.norm(trees.sub(result, halved))
        bias, samples = _ratio(gap, trees.norm(result)), samples + more
    steps = [sample.num_steps for sample in samples]
    residuals = jnp.stack([sample.residual for sample in samples])
    info = PullbackInfo(
        relative_residual=jnp.max(residuals),
        error=None,
        num_steps=sum(steps[1:], steps[0]),
        converged=jnp.all(jnp.stack([sample.converged for sample in samples])),
        positive_definite=None,
        bias=bias,
    )
    return Pullback(trees.scale(nudge.factor, result), info)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _by_element(solved: Solved, cotangent: Tree, centred: bool) -> Pullback:
    """The contrast of adjoints: u = (w_-t - w_t) v / 2t, or from w_0, and -J' u."""
    problem, inner, differentiated = solved.problem, solved.inner, solved.differentiated
    parameters = differentiated.parameters()
    tilt = problem.oracle.functions["tilt"]
    tilts = tilt(parameters, inner, parameters.outer, cotangent)
    trees.require_like(tilts, inner, "tilt(...)", "the inner variable")

    def state(t: Tree) -> tuple[Tree, InnerInfo]:
        oracle = tilted(problem.oracle, t)
        return driver.solve(problem.solver, oracle, inner, parameters)

    moved, info = state(tilts)
    num_steps, converged = info.num_steps, info.converged
    opposite, width = inner, tilts
    if centred:
        opposite, info = state(trees.scale(-1.0, tilts))
        num_steps, converged = num_steps + info.num_steps, converged & info.converged
        width = trees.scale(2.0, tilts)
    none = trees.zeros_like(inner)
    slope = jax.jvp(lambda t: state(t)[0], (none,), (cotangent,))[1]

    def element(w: Any, w_t: Any, t: Any, v: Any, s: Any) -> jax.Array:
        is_limit = t == 0
        return jnp.where(is_limit, -s, (w - w_t) * (v / jnp.where(is_limit, 1, t)))

    adjoint = jax.tree.map(element, opposite, moved, width, cotangent, slope)
    pulled = mixed_vjp(
        lambda w, a: problem.oracle.gradient(w, differentiated.build(a)),
        inner,
        differentiated.values,
        adjoint,
    )
    report = PullbackInfo(
        relative_residual=None,
        error=None,
        num_steps=num_steps,
        converged=converged,
        positive_definite=None,
        bias=None,
    )
    return Pullback(trees.scale(-1.0, pulled), report)


def _check(beta: float | None, centred: bool, tilt: Tilt | None, plain: bool) -> None:
    if tilt is not None:
        if beta is not None or not plain:
            raise ValueError(
                "nudged: tilt chooses the nudge of every element; leave beta and all "
                "other arguments but centred out."
            )
        return
    if beta is None or beta == 0 or not math.isfinite(beta):
        raise ValueError(
            "nudged: pass beta, the strength of the nudge, finite and not 0 (0.01, "
            f"say), or tilt; got beta={beta}."
        )
    if centred and beta < 0:
        raise ValueError(
            "nudged: a centred nudge takes both signs of beta; give it as positive, or "
            f"pass centred=False, got {beta}."
        )
