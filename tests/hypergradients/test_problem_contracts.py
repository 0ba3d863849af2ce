"""Problems that are not uniform: every rule meets them, and every new one will.

The problems of `test_contracts.py` are alike: every leaf depends on x, F reads all of
them, all are of one size, and the solver reaches the solution.  Those here are not.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_problems import (
    UNEVEN_INNER,
    UNEVEN_LARGE,
    UNEVEN_OTHER_OUTER,
    UNEVEN_OUTER,
    Data,
    dense_hypergradient,
    leaf_errors,
    readout,
    ridge,
    ridge_solution,
    uneven,
    uneven_readout,
    uneven_solution,
)
from rules import ROWS, STEP_SIZE, VARIANTS, Row, by_program

import bilevel
from bilevel import hypergradients, inner_solvers, linear_solvers

SLOW = pytest.mark.slow
MAIN = ("implicit, CG", "unrolled", "nudged, centred", "one step")


def rows(default: Any) -> Any:
    """The rows, all but those of `default` marked slow."""
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(row, id=row.name, marks=[] if row.name in default else SLOW)
            for row in ROWS
        ],
    )


all_rows = rows({row.name for row in ROWS} - VARIANTS)
main_rows = rows(MAIN)


def solve(row: Row, objective: Any, function: Any, on_untrustworthy: Any = "ignore"):
    return bilevel.argmin(
        objective,
        row.solver,
        row.rule(row.nudge),
        on_untrustworthy=on_untrustworthy,
        outer_objective=function if row.full else None,
    )


# Leaves that differ: in what they depend on, who reads them, their sizes and shapes.


@functools.cache
def reference(inverse: Any) -> Callable:
    @jax.jit
    def gradient(x: Any, batch: Any) -> Any:
        inner = uneven_solution(x, batch[1])
        return dense_hypergradient(uneven, uneven_readout, inner, x, batch, inverse)

    return gradient


def tolerances(row: Row) -> dict[str, float]:
    """What a rule can reach of each leaf of x.

    A nudge has one size for all leaves, and moves the large one, whose derivative of F
    is 1e-3, by no more than some thousand rounding units.
    """
    large = row.tolerance
    if row.nudge:
        move = row.nudge * 1e-3
        large = max(large, 10 * float(np.finfo(float).eps) * UNEVEN_LARGE / move)
    return {"decay": max(row.tolerance, 1e-8), "level": max(large, 1e-8)}


def check(row: Row, gradient: Callable, calls: Any, promise: float = 0.0) -> None:
    for x, batch in calls:
        expected = reference(row.inverse)(x, batch)
        found = leaf_errors(gradient(x, batch), expected)
        allowed = {k: max(v, promise) for k, v in tolerances(row).items()}
        assert all(found[name] <= allowed[name] for name in allowed), found


def loss_of(row: Row, on_untrustworthy: Any = "ignore") -> Callable:
    solver = solve(row, uneven, uneven_readout, on_untrustworthy)
    return lambda x, batch: uneven_readout(solver(UNEVEN_INNER, x, batch)[0], x, batch)


def calls(row: Row) -> list[tuple[Any, Any]]:
    """The second has other values, and a constant that hides those of G."""

    def data(seed: int) -> Data:
        # The bias and the kernel are coupled, but not so that descent becomes slow.
        drawn = row.data(seed)
        mean = jnp.mean(drawn.features, axis=0, keepdims=True)
        return drawn._replace(features=drawn.features - 0.8 * mean)

    return [
        (UNEVEN_OUTER, (jnp.array(0.0), data(0))),
        (UNEVEN_OTHER_OUTER, (jnp.array(1e8), data(1))),
    ]


@all_rows
@pytest.mark.thinned(2)
def test_leaves_that_differ(row: Row):
    check(row, jax.jit(jax.grad(loss_of(row))), calls(row))


@rows(["implicit, CG", "nudged, centred", "unrolled"])
@pytest.mark.thinned(3)
def test_leaves_that_differ_without_jit(row: Row):
    check(row, jax.grad(loss_of(row)), calls(row)[:1])


@rows(["implicit, CG", "unrolled"])
@pytest.mark.thinned(9)
def test_leaves_that_differ_in_forward_mode(row: Row):
    both_modes = row.name.startswith(("implicit", "unrolled", "truncated"))
    if not both_modes or "mode" in row.name:
        pytest.skip("reverse mode only, see the table of test_contracts")
    check(row, jax.jit(jax.jacfwd(loss_of(row))), calls(row))


@rows(["implicit, CG"])
def test_leaves_that_differ_are_trusted_by_default(row: Row):
    """The certificate finds the gradient right where it is; NaN would say otherwise."""
    if row.name == "one step" or "one-sided" in row.name or row.full:
        pytest.skip("biased, or flagged for other reasons")
    row = watched(row)
    gradient = jax.jit(jax.grad(loss_of(row, "nan")))
    for x, batch in calls(row):
        found = gradient(x, batch)
        # A nudge that drowns in the rounding of the large leaf is distrusted rightly.
        if not (row.nudge and bool(jnp.isnan(found["level"]))):
            # What is promised, whatever the solver's tolerance does to nudged states.
            check(row, lambda *_, f=found: f, [(x, batch)], promise=1e-4)


def watched(row: Row) -> Row:
    """With a tolerance that can be met; DESCENT has none, and never converges."""
    return row._replace(solver=row.solver._replace(rtol=1e-11))


@pytest.mark.thorough
def test_leaves_that_differ_with_everything_reported():
    problem = bilevel.Problem(uneven, uneven_readout)
    evaluate = jax.jit(bilevel.value_and_hypergradient(problem))
    (first, second) = calls(ROWS[0])
    for x, batch in (first, second):
        out = evaluate(UNEVEN_INNER, x, bilevel.Batches(batch, None))
        expected = reference(ROWS[0].inverse)(x, batch)
        assert max(leaf_errors(out.gradient, expected).values()) <= 1e-8
        assert bool(out.info.trustworthy)
        assert bool(out.info.inner.converged)
    derivative = jax.jit(
        jax.jacrev(
            lambda x: evaluate(UNEVEN_INNER, x, bilevel.Batches(first[1])).gradient
        )
    )(first[0])
    again = jax.jacfwd(lambda x: reference(ROWS[0].inverse)(x, first[1]))(first[0])
    for got, expected in zip(
        jax.tree.leaves(derivative), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


# A leaf that the inner objective does not use.


def blind(w: Any, x: Any, batch: Any) -> jax.Array:
    return ridge(w["kernel"], x, batch[1])


def weighted(w: Any, x: Any, batch: Any) -> jax.Array:
    """F reads the unused leaf, too, where the weight in the batch is not 0."""
    return readout(w["kernel"], x, None) + batch[0] * jnp.sum(w["unused"])


UNUSED = {"kernel": jnp.zeros(3), "unused": jnp.ones(2)}


def of_blind(row: Row, on_untrustworthy: Any) -> Callable:
    """weight -> d/d decay of `weighted` at the argmin of `blind`, and the argmin."""
    data = row.data(0)
    solver = solve(watched(row), blind, weighted, on_untrustworthy)

    @jax.jit
    def gradient(weight: float) -> Any:
        batch = (weight, data)

        def loss(x: jax.Array) -> Any:
            inner = solver(UNUSED, x, batch)[0]
            return weighted(inner, x, batch), inner

        return jax.grad(loss, has_aux=True)(UNEVEN_OUTER["decay"])

    return gradient


def without_the_leaf(row: Row, inverse: Any) -> jax.Array:
    x, data = UNEVEN_OUTER["decay"], row.data(0)
    kernel = ridge_solution(x, data)
    return dense_hypergradient(
        ridge, lambda w, x, batch: readout(w, x, None), kernel, x, data, inverse
    )


@main_rows
@pytest.mark.thinned(3)
def test_a_leaf_that_the_inner_objective_does_not_use(row: Row):
    """Every value of it is a minimiser: it stays, and its derivative in x is 0.

    The derivative of the others is that of a problem without it.  The Hessian is
    singular: by default no certificate trusts a gradient there, since nothing tells a
    leaf that is unused from a model whose solution is not determined.
    """
    expected = without_the_leaf(row, row.inverse)
    distrusted = not by_program(row)
    if distrusted:
        gradient = of_blind(row, "nan")
        for weight in (0.0, 1.0):
            assert bool(jnp.isnan(gradient(weight)[0]).all())
    if distrusted and "dense" in row.name:
        return  # a factorisation of a singular matrix: nothing is promised
    gradient = of_blind(row, "ignore")
    # Where F reads the leaf, the adjoint equation has no solution, which a rule by
    # program does not ask for.
    for weight in (0.0,) if distrusted else (0.0, 1.0):
        got, found = gradient(weight)
        np.testing.assert_array_equal(found["unused"], UNUSED["unused"])
        error = float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))
        assert error <= max(row.tolerance, 1e-8)


@pytest.mark.thorough
def test_a_damped_adjoint_is_trusted_where_a_leaf_is_unused():
    """What is promised then is the damped derivative, -J' (H + damping I)^-1 v."""
    damping = 1e-2
    rule = hypergradients.implicit(linear_solvers.cg(damping=damping))
    row = ROWS[0]._replace(rule=lambda _: rule)
    gradient = of_blind(row, "nan")
    expected = without_the_leaf(
        row, lambda hessian: jnp.linalg.inv(hessian + damping * jnp.eye(len(hessian)))
    )
    for weight in (0.0, 1.0):
        np.testing.assert_allclose(gradient(weight)[0], expected, rtol=1e-6)


# Points that are no solution, though little tells.

UNFINISHED = inner_solvers.gradient_descent(0.05, max_steps=50)


def well_or_slope(w: jax.Array, x: jax.Array, batch: Any) -> jax.Array:
    """A double well for batch 1, a long slope towards w = x for batch 0."""
    well = w**4 / 4 - x * w**2 / 2
    return batch * well + (1 - batch) * (
        jnp.logaddexp(0.0, -10 * w) + 0.005 * (w - x) ** 2
    )


def square_or_hinge(w: jax.Array, x: jax.Array, batch: Any) -> jax.Array:
    return batch * w**2 + (1 - batch) * (jnp.maximum(w - 2.0, 0.0) ** 2 + 0.3 * x)


# The well has minima at w^2 = x, so that F = x. On the slope w* = x and dF/dw = 12.
CASES = {"saddle": (1.0, 1.5, 1.0), "flat": (0.0, 8.0, 12.0)}


@rows(["implicit, CG", "nudged, centred", "unrolled"])
@pytest.mark.thinned(3)
def test_a_saddle_and_a_flat_outer_objective_are_not_trusted(row: Row):
    """Right or NaN: at w = 0 the gradient of the well is 0 by symmetry; on the slope an
    unfinished solve stops where F is flat."""
    solver = solve(
        row._replace(solver=UNFINISHED), well_or_slope, square_or_hinge, "nan"
    )
    if row.name == "truncated":
        solver = solve(
            row._replace(
                solver=UNFINISHED, rule=lambda _: hypergradients.truncated(30)
            ),
            well_or_slope,
            square_or_hinge,
            "nan",
        )

    @jax.jit
    @jax.grad
    def through(x: jax.Array, batch: jax.Array) -> jax.Array:
        return square_or_hinge(solver(0.0, x, batch)[0], x, batch)

    for name, (batch, x, expected) in CASES.items():
        if name == "saddle" and by_program(row):
            # Descent has converged there, and nothing else is watched: the derivative
            # of the program is 0, and so is what it returns (see `unrolled`).
            continue
        got = float(through(x, batch))
        direct = 0.3 * (1 - batch)
        assert np.isnan(got) or abs(got - direct - expected) <= 1e-4 * expected, name


@pytest.mark.parametrize("name", ["default", *CASES])
@pytest.mark.thinned(3)
def test_no_saddle_and_no_flat_outer_objective_is_reported_as_trusted(name: str):
    batch, x, expected = CASES["saddle" if name == "default" else name]
    solver = None if name == "default" else UNFINISHED
    problem = bilevel.Problem(well_or_slope, square_or_hinge)
    out = jax.jit(bilevel.value_and_hypergradient(problem, solver))(
        0.0, x, bilevel.Batches(batch, batch)
    )
    right = abs(float(out.gradient) - expected - 0.3 * (1 - batch)) <= 1e-4 * expected
    assert right or not bool(np.asarray(out.info.trustworthy) == 1)


@pytest.mark.thorough
def test_a_network_of_zeros():
    """Two tanh units that start alike: by symmetry a stationary point, no minimum."""
    inputs = jnp.linspace(-1.5, 1.5, 8)
    targets = jnp.sin(2 * inputs)

    def network(w: Any, x: Any, batch: Any) -> jax.Array:
        outputs = jnp.tanh(jnp.outer(inputs, w["in"])) @ w["out"]
        size = jnp.sum(w["in"] ** 2) + jnp.sum(w["out"] ** 2)
        return jnp.mean((outputs - targets) ** 2) + jnp.exp(x) * size

    def held_out(w: Any, x: Any, batch: Any) -> jax.Array:
        outputs = jnp.tanh(0.7 * w["in"]) @ w["out"]
        return (outputs - 1.0) ** 2

    zeros = {"in": jnp.zeros(2), "out": jnp.zeros(2)}
    evaluate = bilevel.value_and_hypergradient(bilevel.Problem(network, held_out))
    out = jax.jit(evaluate)(zeros, jnp.array(-4.0))
    flag = bool(np.asarray(out.info.trustworthy) == 1)
    moved = float(jnp.linalg.norm(out.inner["in"])) > 0.1
    assert moved or not flag
    hessian = jax.hessian(lambda v: network({"in": v[:2], "out": v[2:]}, -4.0, None))
    lowest = jnp.linalg.eigvalsh(hessian(jnp.append(out.inner["in"], out.inner["out"])))
    assert lowest[0] > -1e-9 or not flag


# Leaves of other kinds beside real ones.


def attempt(f: Callable) -> Any:
    """The value, or the error by which it is refused."""
    try:
        return f()
    except (TypeError, ValueError) as error:
        return error


@main_rows
def test_complex_leaves_are_right_or_refused(row: Row):
    """Never a gradient of zero: in x, in the batch, in what G closes over."""

    def gradient(of: str) -> Any:
        def loss(c: jax.Array) -> jax.Array:
            closed = c if of == "closure" else 1 + 2j

            def objective(w: Any, x: Any, batch: Any) -> jax.Array:
                part = {"outer": x["c"], "batch": batch, "closure": closed}[of]
                target = x["a"] + jnp.real(part) ** 2 + jnp.imag(part) ** 2
                return jnp.sum((w - target) ** 2) / 2

            def function(w: Any, x: Any, batch: Any) -> jax.Array:
                return jnp.sum(w)

            x = {"a": jnp.array(1.0), "c": c if of == "outer" else jnp.array(1 + 2j)}
            batch = c if of == "batch" else jnp.array(1 + 2j)
            inner, _ = solve(row, objective, function)(jnp.zeros(3), x, batch)
            return function(inner, x, batch) / 3

        return jax.jit(jax.grad(loss))(jnp.array(1 + 2j))

    scale = STEP_SIZE if row.name == "one step" else 1.0
    for of in ("outer", "batch", "closure"):
        got = attempt(functools.partial(gradient, of))
        if isinstance(got, Exception):
            assert "complex" in str(got)
            continue
        assert jnp.issubdtype(got.dtype, jnp.complexfloating)
        np.testing.assert_allclose(got, scale * (2 - 4j), rtol=max(1e-6, row.nudge))


@main_rows
def test_integer_leaves_beside_real_ones(row: Row):
    """Labels and counts in x and in the batch; but nothing to solve for."""

    def objective(w: Any, x: Any, batch: Any) -> jax.Array:
        target = x["a"] * x["power"] + batch["count"]
        return jnp.sum((w["v"] - target) ** 2) / 2

    def function(w: Any, x: Any, batch: Any) -> jax.Array:
        return jnp.sum(w["v"])

    solver = solve(row, objective, function)
    batch = {"count": jnp.array(3), "mask": jnp.array(True)}

    @jax.jit
    @jax.grad
    def gradient(a: jax.Array) -> jax.Array:
        x = {"a": a, "power": jnp.array(2)}
        return function(solver({"v": jnp.zeros(3)}, x, batch)[0], x, batch) / 3

    scale = STEP_SIZE if row.name == "one step" else 1.0
    np.testing.assert_allclose(gradient(1.5), 2 * scale, rtol=1e-6)
    with pytest.raises(ValueError, match="inner"):
        solver({"v": jnp.zeros(3, jnp.int32)}, {"a": 1.0, "power": 2}, batch)


@all_rows
@pytest.mark.thinned(3)
def test_what_a_rule_does_not_know_is_no_nan(row: Row):
    """`jax_debug_nans` stops at any."""
    evaluate = bilevel.value_and_hypergradient(
        bilevel.Problem(ridge, readout), row.solver, row.rule(row.nudge), certify=False
    )
    data = row.data(0)
    with jax.debug_nans(True):
        out = jax.jit(evaluate)(jnp.zeros(3), jnp.zeros(3), bilevel.Batches(data, data))
    for leaf in jax.tree.leaves(out.info.pullback):
        assert np.isfinite(leaf)
