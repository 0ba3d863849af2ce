"""The two-loop algorithm: solve the inner problem, step along the hypergradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import checks, hypergradients, inner_solvers, trees
from bilevel.argument_checks import default_rtol
from bilevel.hypergradients import Hypergradient
from bilevel.inner_solvers import InnerSolver
from bilevel.preconditioners import carried
from bilevel.problem import Batches, Problem, Samples, Solver, as_samples, stream
from bilevel.trees import Tree
from bilevel.value_and_hypergradient import WarmStart, value_and_hypergradient


class TwoLoopState(NamedTuple):
    """Everything the algorithm carries; a checkpoint is this pytree.

    Attributes:
        inner: w, where the next inner solve starts.
        outer: x.
        outer_state: of the outer optimiser.
        warm_start: what the next pull-back of the rule starts from, and the state of
            the preconditioner.
        last_gradient: `[]`, the norm of the last finite hypergradient; 0 before it.
        largest_gradient: `[]`, that of the largest so far.
        step: `[]` int32, updates made.
        key: `[]` typed PRNG key, of which the streams are drawn.
    """

    inner: Tree
    outer: Tree
    outer_state: Any
    warm_start: WarmStart
    last_gradient: jax.Array
    largest_gradient: jax.Array
    step: jax.Array
    key: jax.Array


class TwoLoopInfo(NamedTuple):
    """What one update reports, about the point it started from; scalars.

    Attributes:
        value: the outer objective.
        gradient_norm: of the hypergradient.
        inner_relative_residual: of the inner solve.
        inner_steps: `[]` int32.
        inner_converged: whether it met its tolerance.
        adjoint_relative_residual: of the adjoint equation; None for a rule that solves
            none.
        adjoint_steps: `[]` int32.
        positive_definite: no negative curvature was met by the adjoint solve; None for
            a rule that does not look at curvature.
        checked: whether this hypergradient was certified; where it was not, the next
            three say nothing, and are inf, False and
            `hypergradients.certificate.UNCHECKED`.  All four are None with
            `certify=False`.
        error: estimated relative error of the hypergradient.
        trustworthy: see `bilevel.value_and_hypergradient`.
        reason: the test that failed, likewise.
        aux: the auxiliary output of the outer objective.
    """

    value: jax.Array
    gradient_norm: jax.Array
    inner_relative_residual: jax.Array
    inner_steps: jax.Array
    inner_converged: jax.Array
    adjoint_relative_residual: jax.Array | None
    adjoint_steps: jax.Array
    positive_definite: jax.Array | None
    checked: jax.Array | None
    error: jax.Array | None
    trustworthy: jax.Array | None
    reason: jax.Array | None
    aux: Any


def two_loop(  # noqa: PLR0913 - settings, by keyword
    problem: Problem,
    inner_solver: InnerSolver | None = None,
    hypergradient: Hypergradient | None = None,
    *,
    outer_optimizer: optax.GradientTransformation,
    outer_projection: Callable[[Tree], Tree] | None = None,
    warm_start: bool = True,
    rtol: float | None = None,
    certify: bool | int = False,
    adaptive: bool = False,
) -> Solver[TwoLoopState, TwoLoopInfo]:
    """w_t = argmin G(., x_t);  x_(t+1) = optimizer(x_t, dF(w*(x_t), x_t)/dx).

    Args:
        problem: the two objectives.
        inner_solver: None means `inner_solvers.newton()`.
        hypergradient: None means `hypergradients.implicit()`.
        outer_optimizer: any optax transformation.
        outer_projection: applied to x after every update, for instance
            `optax.projections.projection_non_negative`.
        warm_start: start the inner solve and the adjoint solve where the last ended,
            instead of at the initial point and at zero.  (A preconditioner keeps its
            state in any case.)  With `problem.initial` the inner solve starts there in
            any case.
        rtol: see `bilevel.value_and_hypergradient`.
        certify: estimate the error of every hypergradient (True), or of every k-th
            (k, from the first), for one to three linear solves more.  Without it
            `error`, `trustworthy` and `reason` are None (unchecked), and absent from
            histories and logs.
        adaptive: the tolerances of the inner and of the adjoint solve, where they are
            the defaults, follow the outer progress: a tenth of the hypergradient's
            norm, relative to the largest so far, instead of rounding from the first
            step on.  With `certify` they are at most a tenth of `rtol`.

    Returns:
        A `Solver`: `init(inner, outer, key) -> TwoLoopState` and
        `update(state, samples) -> (state, TwoLoopInfo)`, both pure; one batch for each
        objective an update.  With `problem.initial`, `inner` is an example, of which
        only the shapes matter.  Cost: that of one `value_and_hypergradient`.

    Raises:
        ValueError: `certify` is neither a bool nor at least 1; `adaptive` with a rule
            that does not follow a tolerance.

    Source: Pedregosa 2016 (HOAG), arXiv:1602.02355, algorithm 1, with an inner solver
    and a rule of one's choice; `adaptive` is its decreasing sequence of tolerances,
    which converges as the hypergradients do.

    Example:
        >>> problem = Problem(lambda w, x, b: (w - x) ** 2, lambda w, x, b: w**2)
        >>> solver = two_loop(problem, outer_optimizer=optax.sgd(0.1))
        >>> state = solver.init(0.0, 1.0, jax.random.key(0))
        >>> state, info = solver.update(state, Batches())
        >>> round(float(state.outer), 6)
        0.8
    """
    period = certify if isinstance(certify, bool) else _period(certify)
    rule = hypergradients.implicit() if hypergradient is None else hypergradient
    solver = inner_solvers.newton() if inner_solver is None else inner_solver
    if adaptive and not rule.follows_tolerance:
        raise ValueError(
            f"two_loop(adaptive=True): the rule {rule.name!r} does not follow a "
            "tolerance. Use hypergradients.implicit(), or adaptive=False."
        )
    evaluate = value_and_hypergradient(
        problem, solver, rule, rtol=rtol, certify=period > 0
    )

    # What a rule starts from is like the unknowns, of which `inner` is a part.
    carries = warm_start and solver.unknowns is None

    def init(inner: Tree, outer: Tree, key: jax.Array) -> TwoLoopState:
        trees.require_float(inner, "inner")
        trees.require_float(outer, "outer")
        inner, outer = trees.as_arrays(inner), trees.as_arrays(outer)
        zero = jnp.zeros((), trees.real_dtype(outer))
        return TwoLoopState(
            inner=inner,
            outer=outer,
            outer_state=outer_optimizer.init(outer),
            warm_start=WarmStart(
                rule.init(inner) if carries else None,
                carried.initial(problem.preconditioner, inner),
            ),
            last_gradient=zero,
            largest_gradient=zero,
            step=jnp.zeros((), jnp.int32),
            key=key,
        )

    def update(
        state: TwoLoopState, samples: Samples | Batches
    ) -> tuple[TwoLoopState, TwoLoopInfo]:
        samples = as_samples(samples)
        batches = Batches(
            samples.inner(stream(state.key, "inner"), state.step),
            samples.outer(stream(state.key, "outer"), state.step),
        )
        inner0 = state.inner if problem.initial is None else None
        when = state.step % period == 0 if period else jnp.zeros((), bool)
        start = state.warm_start
        if adaptive:
            bound = None if period == 0 else _MARGIN * default_rtol(rtol, state.inner)
            start = start._replace(tolerance=_enough(state, bound))
        out = evaluate(inner0, state.outer, batches, start, when)
        updates, outer_state = outer_optimizer.update(
            out.gradient, state.outer_state, state.outer
        )
        outer = optax.apply_updates(state.outer, updates)
        if outer_projection is not None:
            outer = outer_projection(outer)
        norm = trees.norm(out.gradient)
        # An optimiser may skip a step that is not finite, and go on: what the next one
        # starts from must not be spoiled.
        is_finite = jnp.isfinite(norm)
        last = jnp.where(is_finite, norm, state.last_gradient)
        kept = out.warm_start if carries else out.warm_start._replace(rule=None)
        new = state._replace(
            inner=trees.where(is_finite, out.inner, state.inner)
            if warm_start
            else state.inner,
            outer=outer,
            outer_state=outer_state,
            warm_start=trees.where(is_finite, kept, state.warm_start),
            last_gradient=last,
            largest_gradient=jnp.maximum(state.largest_gradient, last),
            step=state.step + 1,
        )
        info = TwoLoopInfo(
            value=out.value,
            gradient_norm=norm,
            inner_relative_residual=out.info.inner.relative_residual,
            inner_steps=out.info.inner.num_steps,
            inner_converged=out.info.inner.converged,
            adjoint_relative_residual=out.info.pullback.relative_residual,
            adjoint_steps=out.info.pullback.num_steps,
            positive_definite=out.info.pullback.positive_definite,
            checked=when if period else None,
            error=out.info.error,
            trustworthy=out.info.trustworthy,
            reason=out.info.reason,
            aux=out.aux,
        )
        return new, info

    return Solver(init, update)


# Of the accuracy that is asked for, or of the gradient's relative size.
_MARGIN = 0.1


def _enough(state: TwoLoopState, bound: float | None) -> jax.Array:
    """The relative accuracy of the next hypergradient: HOAG's, from its progress."""
    largest = state.largest_gradient
    progress = state.last_gradient / jnp.where(largest > 0, largest, 1)
    enough = _MARGIN * jnp.where(largest > 0, progress, 1)
    return enough if bound is None else jnp.minimum(enough, bound)


def _period(certify: int) -> int:
    return checks.count(
        "two_loop: certify (a bool, or every how many steps)", certify, 1
    )
