"""Newton-CG: the default for smooth problems."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.derivatives import Oracle, hvp
from bilevel.inner_problem import InnerSolver, Parameters, StepInfo, stationarity
from bilevel.inner_solvers.driver import check_limits
from bilevel.iteration import iterate_until
from bilevel.linear_solvers.cg import Settings, conjugate_gradients
from bilevel.preconditioners.carried import inverse
from bilevel.trees import Tree


class NewtonState(NamedTuple):
    """What one step leaves to the next.

    Attributes:
        value: G at the present point.
        gradient: dG/dw there.
        first_norm: of the gradient at the start; 0 before the first step.
        last_norm: of the gradient at the step before; 0 before the first step.
        largest: the largest curvature met so far.
    """

    value: jax.Array
    gradient: Tree
    first_norm: jax.Array
    last_norm: jax.Array
    largest: jax.Array


def newton(
    *,
    max_steps: int = 100,
    rtol: float | None = None,
    max_cg_steps: int = 1000,
) -> InnerSolver:
    """Newton's method; directions by preconditioned CG, steps by backtracking.

    The direction d solves H d = -dG/dw to relative accuracy min(1/2, sqrt(|g|/|g_0|)),
    so that convergence is superlinear and early directions are cheap.  Where CG meets
    negative curvature, its last iterate is used; where there is none, the direction of
    that curvature, at a length that does not depend on the scale of G and is doubled
    while that pays.  The step is halved until G decreases sufficiently (Armijo), or,
    where decreases drown in rounding, until the slope there has fallen (approximate
    Wolfe condition).

    A stationary point is searched for negative curvature from a random direction (by
    CG, which sees none where symmetry hides it) before it is called the solution; if
    there is any, the iteration goes on along it.

    Args:
        max_steps: the cap on Newton steps.
        rtol: stop after a direction with |d| <= rtol |w|, which estimates the relative
            error of w before the step; after it, the error is about its square.
            None as in `InnerSolver`.
        max_cg_steps: the cap on the CG steps of one direction.

    Returns:
        An `InnerSolver`.  Cost: about 1 g per CG step + 1 g per trial step; the search
        at the end costs about as much as one direction.

    Raises:
        ValueError: an argument is out of range.

    Source: Nocedal and Wright 2006, algorithm 7.1; Eisenstat and Walker 1996; Hager and
    Zhang 2005 for the approximate Wolfe condition.

    Example:
        >>> solver = newton(max_steps=20, rtol=1e-6)
    """
    max_steps = check_limits("newton", max_steps, rtol)
    max_cg_steps = checks.count("newton: max_cg_steps", max_cg_steps, 1)

    def init(oracle: Oracle, inner: Tree, parameters: Parameters) -> NewtonState:
        value, gradient = oracle.value_and_gradient(inner, parameters)
        zero = jnp.zeros((), trees.real_dtype(inner))
        return NewtonState(value, gradient, zero, zero, zero)

    def step(
        oracle: Oracle, inner: Tree, state: NewtonState, parameters: Parameters
    ) -> tuple[Tree, NewtonState, StepInfo]:
        norm = trees.norm(state.gradient)
        first = jnp.where(state.first_norm > 0, state.first_norm, norm)
        ratio = norm / jnp.where(first > 0, first, 1)
        settings = Settings(
            rtol=jnp.minimum(0.5, jnp.sqrt(ratio)),
            max_steps=max_cg_steps,
            largest=state.largest,
        )
        direction = _direction(oracle, inner, parameters, state.gradient, settings)
        line = _Line(oracle, inner, parameters, state.value, state.gradient, direction)
        trial = _search(line)
        # Once decreases drown in rounding, only the gradient tells of progress.
        stuck = (state.last_norm > 0) & (norm > state.last_norm / 2)
        size = trees.norm(trial.inner)
        length = trees.norm(direction.vector) / jnp.where(size > 0, size, 1)
        info = StepInfo(
            norm,
            None,
            trial.unmeasurable & stuck,
            # The length of a step along negative curvature says nothing of the error.
            relative=jnp.where(direction.is_curved, jnp.inf, length),
        )
        state = NewtonState(trial.value, trial.gradient, first, norm, direction.largest)
        return trial.inner, state, info

    return InnerSolver(
        init=init,
        step=step,
        optimality=stationarity,
        structure="positive_definite",
        max_steps=max_steps,
        rtol=rtol,
        reverse_differentiable=False,
        escape=partial(_escape, max_cg_steps=max_cg_steps),
        preconditioned=True,
    )


class _Direction(NamedTuple):
    vector: Tree
    is_curved: jax.Array  # of no positive curvature: its length is a guess
    largest: jax.Array


def _direction(
    oracle: Oracle,
    inner: Tree,
    parameters: Parameters,
    gradient: Tree,
    settings: Settings,
) -> _Direction:
    product = hvp(oracle.gradient, inner, parameters)
    downhill = trees.scale(-1.0, gradient)
    precondition = inverse(oracle, parameters)
    solution, info, last = conjugate_gradients(
        product, downhill, settings, None, precondition
    )
    slope = trees.dot(solution, gradient)
    descends = (slope < 0) & jnp.isfinite(slope)
    guess = _along(last.vector, last.curvature, gradient, inner)
    # fmax: nan where no step was taken.
    largest = jnp.fmax(info.largest, jnp.asarray(settings.largest))
    is_curved = ~descends & ~info.positive_definite
    vector = trees.where(is_curved, guess, solution)
    return _Direction(vector, is_curved, largest)


def _along(p: Tree, curvature: jax.Array, gradient: Tree, inner: Tree) -> Tree:
    """A step along p, downhill, whose length does not depend on the scale of G."""
    size = trees.norm(p)
    unit = trees.over(p, size)
    slope = trees.dot(unit, gradient)
    bent = jnp.where(curvature == 0, jnp.inf, jnp.abs(curvature))
    length = jnp.maximum(jnp.abs(slope) / bent, 1e-2 * trees.norm(inner))
    length = jnp.where(length > 0, length, 1)  # at the origin there is no scale
    return trees.scale(jnp.where(slope > 0, -length, length), unit)


class _Line(NamedTuple):
    """G along w + t d, with what is known at t = 0."""

    oracle: Oracle
    inner: Tree
    parameters: Parameters
    value: jax.Array
    gradient: Tree
    direction: _Direction


class _Trial(NamedTuple):
    size: jax.Array
    inner: Tree
    value: jax.Array
    gradient: Tree
    unmeasurable: jax.Array  # the decrease that was to be expected is below rounding


def _at(line: _Line, size: jax.Array) -> _Trial:
    inner = trees.axpy(size, line.direction.vector, line.inner)
    value, gradient = line.oracle.value_and_gradient(inner, line.parameters)
    return _Trial(size, inner, value, gradient, jnp.zeros((), bool))


def _search(line: _Line) -> _Trial:
    """The first of w + d, w + d/2, ... that decreases G enough; w itself if none.

    Along negative curvature the step is then doubled while that decreases G further.
    """
    slope = trees.dot(line.gradient, line.direction.vector)
    rounding = 10 * trees.epsilon(line.inner) * jnp.abs(line.value)

    def accepted(trial: _Trial) -> jax.Array:
        decrease = trial.value <= line.value + 1e-4 * trial.size * slope
        after = trees.dot(trial.gradient, line.direction.vector)
        flattens = (after <= 0.8 * jnp.abs(slope)) & jnp.isfinite(trial.value)
        small = ~(jnp.abs(trial.size * slope) > rounding)
        near = trial.value <= line.value + rounding
        return decrease | (small & near & flattens)

    one = jnp.ones((), slope.dtype)
    trial, _ = iterate_until(
        lambda t: _at(line, t.size / 2), _at(line, one), accepted, max_steps=30
    )
    taken = accepted(trial)

    class Longer(NamedTuple):
        best: _Trial
        pays: jax.Array

    def double(s: Longer) -> Longer:
        longer = _at(line, 2 * s.best.size)
        pays = longer.value < s.best.value
        return Longer(trees.where(pays, longer, s.best), pays)

    start = Longer(trial, line.direction.is_curved & taken)
    longer, _ = iterate_until(double, start, lambda s: ~s.pays, max_steps=30)
    trial = longer.best
    stay = _Trial(trial.size, line.inner, line.value, line.gradient, trial.unmeasurable)
    unmeasurable = ~(jnp.abs(trial.size * slope) > rounding)
    return trees.where(taken, trial, stay)._replace(unmeasurable=unmeasurable)


def _escape(
    oracle: Oracle,
    inner: Tree,
    parameters: Parameters,
    attempt: jax.Array,
    *,
    max_cg_steps: int,
) -> tuple[Tree, jax.Array]:
    """A point below `inner` along negative curvature, and whether there is one.

    CG from the gradient sees the curvature in its Krylov space only, to which symmetry
    makes some directions exactly orthogonal (equal units, weights of zero); from a
    random vector it sees all.
    """
    key = jax.random.fold_in(jax.random.key(0), attempt)
    _, info, last = conjugate_gradients(
        hvp(oracle.gradient, inner, parameters),
        trees.random_normal(key, inner),
        # The solution is not wanted, only the curvature on the way to it.
        Settings(rtol=0.5, max_steps=max_cg_steps),
        None,
        inverse(oracle, parameters),  # congruent matrices have eigenvalues of like sign
    )
    value, gradient = oracle.value_and_gradient(inner, parameters)
    vector = _along(last.vector, last.curvature, gradient, inner)
    slope = trees.dot(vector, gradient)
    squared = trees.dot(vector, vector)
    negative = last.curvature < -10 * trees.epsilon(inner) * info.largest
    negative = negative & ~info.positive_definite

    class Trial(NamedTuple):
        size: jax.Array
        value: jax.Array

    def at(size: jax.Array) -> Trial:
        return Trial(size, oracle.value(trees.axpy(size, vector, inner), parameters))

    def accepted(trial: Trial) -> jax.Array:
        bend = trial.size**2 * squared * last.curvature / 2
        return trial.value < value + (trial.size * slope + bend) / 4

    one = jnp.ones((), slope.dtype)
    trial, _ = iterate_until(
        lambda t: at(t.size / 2),
        at(one),
        lambda t: accepted(t) | ~negative,
        max_steps=30,
    )
    return trees.axpy(trial.size, vector, inner), negative & accepted(trial)
