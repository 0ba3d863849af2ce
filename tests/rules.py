"""Every rule, with an inner solver that suits it: the rows of the contract tests."""

from collections.abc import Callable
from typing import Any, NamedTuple

import extensions
import jax
import jax.numpy as jnp
from reference_problems import Data, ridge_data, separable_data

from bilevel import hypergradients, inner_solvers, linear_solvers
from bilevel.hypergradients.stencils import centred, one_sided, richardson

STEP_SIZE = 0.4
NUM_STEPS = 80  # of gradient descent: rounding is reached after about 60

DESCENT = inner_solvers.gradient_descent(STEP_SIZE, max_steps=NUM_STEPS, rtol=0.0)


class Row(NamedTuple):
    """A rule, with an inner solver that suits it.

    Attributes:
        name: as in the table.
        rule: the rule, given the size of the nudge.
        solver: the inner solver.
        nudge: the size of the nudge in float64.
        tolerance: relative error in float64; the bias of the nudge where it is large.
        inverse: what the rule puts in place of the inverse Hessian.
        data: batches of problems, by seed.
        full: the rule needs the outer objective itself.
    """

    name: str
    rule: Callable[[float], hypergradients.Hypergradient]
    solver: inner_solvers.InnerSolver = DESCENT
    nudge: float = 0.0
    tolerance: float = 1e-8
    inverse: Callable[[jax.Array], jax.Array] = jnp.linalg.inv
    data: Callable[[int], Data] = ridge_data
    full: bool = False


def _constant(rule: hypergradients.Hypergradient) -> Callable[[float], Any]:
    return lambda nudge: rule


def _identity(hessian: jax.Array) -> jax.Array:
    return STEP_SIZE * jnp.eye(len(hessian))


ROWS = (
    Row("implicit, CG", _constant(hypergradients.implicit())),
    Row(
        "implicit, dense",
        _constant(hypergradients.implicit(linear_solvers.dense())),
    ),
    Row(
        "implicit, Neumann",
        _constant(
            hypergradients.implicit(linear_solvers.neumann(STEP_SIZE, NUM_STEPS))
        ),
    ),
    Row("unrolled", _constant(hypergradients.unrolled())),
    Row(
        "unrolled, steps rematerialised",
        _constant(hypergradients.unrolled(rematerialize="step")),
    ),
    Row(
        "unrolled, segments",
        _constant(hypergradients.unrolled(rematerialize="segments")),
    ),
    Row(
        "unrolled, mixed mode",
        _constant(hypergradients.unrolled(mixed_mode=True)),
    ),
    Row(
        "unrolled, forward mode",
        _constant(hypergradients.unrolled(mode="forward")),
    ),
    # The last 60 of 80 + 60 steps: from the minimiser, to rounding.
    Row(
        "truncated",
        _constant(hypergradients.truncated(60)),
        DESCENT._replace(max_steps=NUM_STEPS + 60),
    ),
    Row("one step", _constant(hypergradients.one_step()), inverse=_identity),
    Row(
        "nudged, one-sided",
        lambda nudge: hypergradients.nudged(one_sided(nudge)),
        nudge=1e-5,
        tolerance=1e-4,
    ),
    Row("nudged, centred", hypergradients.nudged, nudge=1e-3, tolerance=1e-6),
    Row(
        "nudged, in full",
        lambda nudge: hypergradients.nudged(nudge, linearised=False),
        nudge=1e-4,
        tolerance=1e-6,
        full=True,
    ),
    Row(
        "nudged, Richardson",
        lambda nudge: hypergradients.nudged(richardson(centred(nudge))),
        nudge=1e-2,
    ),
    Row(
        "nudged, per element",
        _constant(
            hypergradients.nudged_by_element(
                lambda w, x, v: jax.tree.map(jnp.ones_like, w)
            )
        ),
        data=separable_data,
    ),
    Row(
        "nudged, per element, one-sided",
        _constant(
            hypergradients.nudged_by_element(
                lambda w, x, v: jax.tree.map(jnp.ones_like, w), one_sided(1.0)
            )
        ),
        data=separable_data,
    ),
)


# Written as an outsider would, in one file each; in no table of README.
EXTENSIONS = (
    Row(
        "extension: finite difference",
        _constant(extensions.finite_difference(STEP_SIZE)),
        tolerance=1e-6,
        inverse=_identity,
    ),
)


def by_program(row: Row) -> bool:
    """Whether autodiff passes through the solver's own steps.

    It offers no place for a certificate: what is watched is convergence alone.
    """
    named = row.name.startswith(("unrolled", "truncated"))
    return named and "forward mode" not in row.name


# Less often tested: they share most of their code with another row.
VARIANTS = {
    "unrolled, steps rematerialised",
    "unrolled, segments",
    "unrolled, mixed mode",
    "nudged, Richardson",
    "nudged, one-sided",
    "nudged, per element, one-sided",
}
