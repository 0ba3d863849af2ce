"""Faults that use and reports found in the core, one test for each.

The names carry the number of the finding.  Each asserts the right value, in closed
form; the code that had the fault fails it.
"""

import operator
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import (
    Batches,
    Problem,
    argmin,
    hypergradients,
    inner_solvers,
    linear_solvers,
    solvers,
    value_and_hypergradient,
)
from bilevel.hypergradients.certificate import REASONS


def warned(f: Callable[[], Any]) -> list[warnings.WarningMessage]:
    """The warnings that running `f` gave."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        jax.block_until_ready(f())
        jax.effects_barrier()
    return seen


def test_c1_a_flat_outer_objective_excuses_no_unfinished_solve():
    """w* = 8 and dF/dw = 12 there; where descent stops, dF/dw is 0."""

    def slope(w, x, b):
        return jnp.logaddexp(0.0, -10 * w) + 0.005 * (w - x) ** 2

    def hinge(w, x, b):
        return jnp.maximum(w - 2.0, 0.0) ** 2 + 0.3 * x

    short = inner_solvers.gradient_descent(0.05, max_steps=50)
    out = jax.jit(value_and_hypergradient(Problem(slope, hinge), short))(0.0, 8.0)
    assert not bool(out.info.inner.converged)
    assert not bool(out.info.trustworthy)
    solve = argmin(slope, short, on_untrustworthy="nan")
    gradient = jax.jit(jax.grad(lambda x: hinge(solve(0.0, x)[0], x, None)))
    assert bool(jnp.isnan(gradient(8.0)))


def test_c2_a_saddle_that_symmetry_hides_is_left():
    """The minima have w[0]^2 = x and w[1] = x, so that dF/dx = 1 + 2 (x - 1)."""

    def wells(w, x, b):
        return 0.25 * w[0] ** 4 - 0.5 * x * w[0] ** 2 + 0.5 * (w[1] - x) ** 2

    def outer(w, x, b):
        return w[0] ** 2 + (w[1] - 1) ** 2

    evaluate = value_and_hypergradient(Problem(wells, outer), certify=False)
    out = jax.jit(evaluate)(jnp.zeros(2), 1.5)
    np.testing.assert_allclose(out.gradient, 2.0, rtol=1e-6)
    assert bool(out.info.inner.converged)

    # A solver that stays there is not believed.
    descent = inner_solvers.gradient_descent(0.5)
    out = jax.jit(value_and_hypergradient(Problem(wells, outer), descent))(
        jnp.zeros(2), 1.5
    )
    assert float(out.inner[0]) == 0
    assert not bool(out.info.trustworthy)
    assert "no strict minimum" in REASONS[int(out.info.reason)]


def free_bias(w, x, b):
    """dG/dw of the bias contains no x; the kernel of the solution is 1 / (x + 1/2)."""
    error = (w["kernel"] + w["bias"] - 3.0) ** 2 + (w["bias"] - 1.0) ** 2
    return error + x * w["kernel"] ** 2


BIASED = {"kernel": 0.0, "bias": 0.0}


@pytest.mark.parametrize(
    "linear_solver",
    [None, linear_solvers.dense(), linear_solvers.neumann(0.2, 300)],
    ids=["cg", "dense", "neumann"],
)
@pytest.mark.thinned(3)
def test_c3_a_leaf_that_x_does_not_touch(linear_solver: Any):
    """k = 1 / (x + 1/2), so that d/dx (k - 1)^2 = -2 (k - 1) k^2."""
    solve = argmin(
        free_bias,
        None,
        hypergradients.implicit(linear_solver),
        on_untrustworthy="ignore" if linear_solver else "nan",
    )

    def loss(x):
        return (solve(BIASED, x)[0]["kernel"] - 1.0) ** 2

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.0), 8 / 27, rtol=1e-6)


@pytest.mark.thorough
def test_c3_three_levels_over_a_leaf_that_x_does_not_touch():
    def outer(w, x, b):
        return (w["kernel"] - 1.0) ** 2

    evaluate = value_and_hypergradient(Problem(free_bias, outer), certify=False)
    value, gradient = jax.jit(
        lambda x: (
            jax.grad(lambda x: evaluate(BIASED, x).value)(x),
            jax.jacrev(lambda x: evaluate(BIASED, x).gradient)(x),
        )
    )(jnp.array(1.5))
    np.testing.assert_allclose(value, 0.25, rtol=1e-6)
    np.testing.assert_allclose(gradient, -0.125, rtol=1e-5)


@pytest.mark.thorough
def test_c4_rounding_reaches_the_gradient_through_two_solves():
    """v is nearly orthogonal to the weak direction of H; answers in rationals."""
    rng, problems = np.random.default_rng(0), []
    for _ in range(400):
        angle = rng.uniform(0, 6.3)
        small = 10 ** rng.uniform(-7.5, -5.5)
        part = 10 ** rng.uniform(-7.5, -4.5)
        strong = np.array([np.cos(angle), np.sin(angle)])
        weak = np.array([-np.sin(angle), np.cos(angle)])
        hessian = np.outer(strong, strong) + small * np.outer(weak, weak)
        linear = rng.normal() * strong + small * rng.normal() * weak
        target = np.linalg.solve(hessian, linear) - strong - part * weak
        problems.append((hessian, linear, target))
    data = tuple(jnp.array(part) for part in zip(*problems, strict=True))

    def quadratic(w, x, p):
        return 0.5 * w @ p[0] @ w - w @ (p[1] + x)

    def distance(w, x, p):
        return 0.5 * jnp.sum((w - p[2]) ** 2)

    evaluate = value_and_hypergradient(Problem(quadratic, distance))
    out = jax.jit(
        jax.vmap(lambda p: evaluate(jnp.zeros(2), jnp.zeros(2), Batches(p, p)))
    )(data)

    def exact(i: int) -> np.ndarray:
        """H^-1 (w* - t)."""
        (a, b), (_, d) = ([Fraction(q) for q in row] for row in problems[i][0])

        def solve(r):
            determinant = a * d - b * b
            return (d * r[0] - b * r[1]) / determinant, (
                a * r[1] - b * r[0]
            ) / determinant

        solution = solve([Fraction(q) for q in problems[i][1]])
        gaps = map(operator.sub, solution, map(Fraction, problems[i][2]))
        return np.array(solve(list(gaps)), float)

    trusted = np.flatnonzero(out.info.trustworthy)
    assert len(trusted) > 40
    for i in trusted:
        error = np.linalg.norm(out.gradient[i] - exact(i)) / np.linalg.norm(exact(i))
        assert error <= 1e-4


@pytest.mark.thorough
def test_c5_constants_of_extreme_size_in_the_cotangent():
    """Known to the compiler, which may undo a scaling; in float32."""
    curvatures = jnp.logspace(0, 5, 20).astype(jnp.float32)
    start = jnp.zeros(20, jnp.float32)

    def quadratic(w, x, b):
        return 0.5 * jnp.sum(curvatures * w**2) - jnp.sum(w * x)

    def tiny(w, x, b):
        return jnp.float32(1e-30) * jnp.sum(w)

    out = jax.jit(value_and_hypergradient(Problem(quadratic, tiny)))(start, start + 1)
    expected = 1e-30 / np.asarray(curvatures, float)
    np.testing.assert_allclose(np.asarray(out.gradient, float), expected, rtol=1e-2)
    assert bool(out.info.trustworthy)

    for size in (1e-30, 1e-19, 1e19, 1e30):

        @jax.jit
        def constant(size=size):
            rhs = jnp.full(20, size, jnp.float32)
            return linear_solvers.cg().solve(lambda u: curvatures * u, rhs, None, None)

        solution, info = constant()
        assert bool(info.converged)
        solution = np.asarray(solution, float) / size
        np.testing.assert_allclose(solution, 1 / np.asarray(curvatures), rtol=1e-2)


def test_c6_a_small_leaf_beside_a_large_one_is_judged_for_itself():
    """dF/dx = 1, where the small leaf is solved to 63 % only."""

    def scales(w, x, b):
        big = (w["big"] - 1000 - 0.0 * x) ** 2
        return 0.5 * big + 0.005 * (w["small"] - 1e-3 * x) ** 2

    slow = inner_solvers.gradient_descent(0.5, max_steps=200)
    start = {"big": 0.0, "small": 0.0}
    solve = argmin(scales, slow, on_untrustworthy="nan")
    gradient = jax.jit(jax.grad(lambda x: 0.5e6 * solve(start, x)[0]["small"] ** 2))
    assert bool(jnp.isnan(gradient(1.0)))


@pytest.mark.thorough
def test_c7_forward_mode_is_watched():
    """Three steps give -0.186 in place of -0.933."""

    def objective(w, x, b):
        return jnp.logaddexp(0.0, -w) + 0.5 * x * w**2

    def tangent(on_untrustworthy):
        short = inner_solvers.gradient_descent(0.1, max_steps=3)
        solve = argmin(objective, short, on_untrustworthy=on_untrustworthy)
        return jax.jit(jax.jacfwd(lambda x: solve(0.0, x)[0]))

    assert bool(jnp.isnan(tangent("nan")(0.5)))
    (warning,) = warned(lambda: tangent("warn")(0.5))
    assert warning.filename == __file__


@pytest.mark.parametrize("of", ["outer", "outer alone", "batch"])
def test_c8_complex_leaves_are_refused(of: str):
    """Refused: the derivative is 2 - 4j, and was 0."""

    def objective(w, x, b):
        c = {"outer": x, "outer alone": x, "batch": b}[of]["c"]
        return 0.5 * (w - jnp.abs(c) ** 2 - (x["a"] if "a" in x else 1.0)) ** 2

    solve = argmin(objective, inner_solvers.gradient_descent(0.5, max_steps=100))

    def loss(c):
        x = {"a": 1.0} if of != "outer alone" else {}
        x = x | ({"c": c} if of != "batch" else {})
        return solve(0.0, x, {"c": c} if of == "batch" else None)[0]

    with pytest.raises(ValueError, match="real and imaginary parts"):
        jax.jit(jax.grad(loss))(1 + 2j)


def test_c9_batches_are_batches():
    pair = (jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    problem = Problem(lambda w, x, b: jnp.sum((w - x * b) ** 2), lambda w, x, b: w @ w)
    evaluate = value_and_hypergradient(problem)
    solver = solvers.two_loop(problem, outer_optimizer=optax.sgd(0.1))
    state = solver.init(jnp.zeros(2), jnp.ones(2), jax.random.key(0))
    keys = {"inner": pair[0], "outer": pair[1]}
    for wrong in (jnp.stack(pair), pair, list(pair), keys, None):
        with pytest.raises(ValueError, match=r"Batches\(train, validation\)"):
            evaluate(jnp.zeros(2), jnp.ones(2), wrong)
        with pytest.raises(ValueError, match=r"Batches\(train, validation\)"):
            solver.update(state, wrong)


def test_c10_a_constant_added_to_the_objective_moves_no_stopping_rule():
    """dw*/dx = 1, of which 30 steps of 1 % give 26 %."""
    x = jnp.array([3.0], jnp.float32)

    def objective(w, x, constant):
        return constant + 0.5 * jnp.sum((w - x) ** 2)

    solve = jax.jit(argmin(objective, inner_solvers.gradient_descent(0.01)))
    cut = argmin(
        objective,
        inner_solvers.gradient_descent(0.01, max_steps=30),
        hypergradients.unrolled(),
        on_untrustworthy="nan",
    )
    start = jnp.ones(1, jnp.float32)
    gradient = jax.jit(
        jax.grad(lambda x, constant: jnp.sum(cut(start, x, constant)[0]))
    )
    ends = [solve(start, x, jnp.float32(c)) for c in (0.0, 1e4, 1e6)]
    assert [int(info.num_steps) for _, info in ends] == 3 * [int(ends[0][1].num_steps)]
    for w, _ in ends:
        np.testing.assert_array_equal(w, ends[0][0])
    for constant in (0.0, 1e4, 1e6):
        assert bool(jnp.isnan(gradient(x, jnp.float32(constant))).all())


@pytest.mark.thorough
def test_c11_newton_knows_no_scale_where_curvature_is_negative():
    """The minima have w^2 = x, so that F = 2 x: from a start near the maximum."""
    dtype = jnp.float32

    def wells(w, x, scale):
        return scale * jnp.sum(w**4 / 4 - x * w**2 / 2)

    evaluate = jax.jit(
        value_and_hypergradient(Problem(wells, lambda w, x, b: jnp.sum(w**2)))
    )
    start = jnp.array([0.01, 0.02], dtype)
    for scale in (1e8, 1.0, 1e-4, 1e-6, 1e-8):
        out = evaluate(start, jnp.array(1.5, dtype), Batches(jnp.array(scale, dtype)))
        np.testing.assert_allclose(out.gradient, 2.0, rtol=1e-4)
        assert bool(out.info.inner.converged)
        assert bool(out.info.trustworthy)


def test_c13_a_traced_step_size():
    """As a number and inside of an optimiser: d/da of two steps is 2 - 2 a."""

    def objective(w, x, b):
        return 0.5 * (w - x) ** 2

    def descend(optimizer):
        solver = inner_solvers.gradient_descent(optimizer, max_steps=2)
        return argmin(
            objective, solver, hypergradients.unrolled(), on_untrustworthy="ignore"
        )(0.0, 1.0)[0]

    np.testing.assert_allclose(jax.grad(descend)(0.1), 1.8, rtol=1e-12)
    got = jax.jit(jax.grad(lambda a: descend(optax.sgd(a))))(0.1)
    np.testing.assert_allclose(got, 1.8, rtol=1e-12)


def test_c14_no_step_is_divided_by_a_curvature_of_rounding():
    """G does not see u, F does: no adjoint exists, and none of 1e32 is returned."""

    def objective(w, x, b):
        return jnp.sum((w["a"] - x) ** 2)

    def outer(w, x, b):
        return jnp.sum(w["a"] ** 2) + jnp.sum(w["u"]) * w["a"][0]

    start = {"a": jnp.zeros(2), "u": jnp.ones(3)}
    out = jax.jit(value_and_hypergradient(Problem(objective, outer)))(start, 1.5)
    # 2 (w* . 1) + 3 = 9 is the derivative at fixed u.
    assert abs(float(out.gradient)) < 100
    assert not bool(out.info.pullback.converged)
    assert not bool(out.info.pullback.positive_definite)
    assert not bool(out.info.trustworthy)


@pytest.mark.thorough
def test_c14_the_damped_derivative_of_a_singular_problem_is_trusted():
    """Least squares with 3 rows and 6 unknowns: -J'(H + d I)^-1 v, in closed form."""
    rng = np.random.default_rng(0)
    rows, targets = jnp.array(rng.normal(size=(3, 6))), jnp.array(rng.normal(size=3))
    goal, damping = jnp.array(rng.normal(size=6)), 0.1

    def fit(w, x, b):
        return 0.5 * jnp.sum((rows @ w - x * targets) ** 2)

    def outer(w, x, b):
        return 0.5 * jnp.sum((w - goal) ** 2)

    # Of all solutions the one of minimum norm, x A^+ y.
    shortest = jnp.linalg.pinv(rows) @ targets
    solver = inner_solvers.closed_form(lambda w, x, b: x * shortest)
    x, start = jnp.array(1.3), jnp.zeros(6)
    damped = rows.T @ rows + damping * jnp.eye(6)
    # H = A'A and J = -A'y.
    expected = targets @ rows @ jnp.linalg.solve(damped, x * shortest - goal)

    def evaluated(rule):
        evaluate = value_and_hypergradient(Problem(fit, outer), solver, rule)
        return jax.jit(evaluate)(start, x)

    out = evaluated(hypergradients.implicit(linear_solvers.cg(damping=damping)))
    np.testing.assert_allclose(out.gradient, expected, rtol=1e-6)
    assert bool(out.info.trustworthy)
    out = evaluated(None)
    assert not bool(out.info.trustworthy)
    assert "damping" in REASONS[int(out.info.reason)]


def quadratics() -> Problem:
    return Problem(lambda w, x, b: jnp.sum((w - x) ** 2), lambda w, x, b: w @ w)


def updated(certify: bool) -> Any:
    solver = solvers.two_loop(
        quadratics(),
        inner_solvers.closed_form(lambda w, x, b: x),
        outer_optimizer=optax.sgd(0.1),
        certify=certify,
    )
    state = solver.init(jnp.zeros(2), jnp.ones(2), jax.random.key(0))
    return jax.jit(solver.update)(state, Batches())[1]


def test_c16_what_nobody_computed_is_unchecked():
    evaluate = value_and_hypergradient(quadratics(), certify=False)
    out = jax.eval_shape(evaluate, jnp.zeros(2), jnp.ones(2))
    assert out.info.trustworthy is None
    assert out.info.error is None
    assert out.info.reason is None
    solver = solvers.two_loop(quadratics(), outer_optimizer=optax.sgd(0.1))
    state = solver.init(jnp.zeros(2), jnp.ones(2), jax.random.key(0))
    history = bilevel.run(solver, state, Batches(), num_steps=2)[1]
    assert (history.trustworthy, history.error, history.reason) == 3 * (None,)


@pytest.mark.thorough
def test_n1_training_reports_a_certificate_where_asked_for_and_curvature_always():
    unchecked, checked = updated(certify=False), updated(certify=True)
    assert bool(unchecked.positive_definite)
    assert bool(checked.positive_definite)
    assert unchecked.trustworthy is None
    assert unchecked.error is None
    assert bool(checked.trustworthy)
    assert float(checked.error) <= 1e-4


def test_c17_one_warning_for_one_line_that_names_the_test_and_the_line():
    x, start = jnp.array([1.0, 2.0], jnp.float32), jnp.zeros(2, jnp.float32)

    def objective(w, x, b):
        return jnp.sum(jnp.log(jnp.cosh(w - x))) + 0.5 * jnp.sum(w**2)

    solve = argmin(objective, inner_solvers.gradient_descent(0.3, max_steps=11))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(solve(start, x)[0] ** 2)))

    def descend(x):
        for _ in range(4):
            x = x - 0.01 * gradient(x)
        return x

    (warning,) = warned(lambda: descend(x))
    assert warning.filename == __file__
    assert any(reason in str(warning.message) for reason in REASONS[1:])


@pytest.mark.thorough
def test_n3_the_warning_says_which_test_failed_and_comes_once():
    """90 steps are enough for the promise of 1e-2, 60 are not."""
    matrix = jnp.diag(jnp.linspace(0.05, 1.0, 20)).astype(jnp.float32)
    zeros = jnp.zeros(20, jnp.float32)

    def objective(w, x, b):
        return 0.5 * w @ matrix @ w - w @ (x * jnp.ones(20, jnp.float32))

    def gradient(num_steps):
        solver = inner_solvers.gradient_descent(1.0, max_steps=num_steps)
        solve = argmin(objective, solver)
        return jax.jit(jax.grad(lambda x: jnp.sum(solve(zeros, x)[0] ** 2)))

    points = (1.0, 1.1, 1.2)
    slopes = 2 * np.array(points) * np.sum(1 / np.linspace(0.05, 1.0, 20) ** 2)

    def found(num_steps):
        enough = gradient(num_steps)
        return np.array([enough(jnp.float32(x)) for x in points])

    assert not warned(lambda: np.testing.assert_allclose(found(90), slopes, rtol=1e-2))
    (warning,) = warned(lambda: found(60))
    assert any(reason in str(warning.message) for reason in REASONS[1:])
    assert warning.filename == __file__


def test_c18_memory_of_any_kind_is_no_adjoint():
    rule = hypergradients.nudged(0.01)

    def pullback(solved, outer_objective, warm_start):
        result = rule.pullback(solved, outer_objective, None)
        return result._replace(warm_start=(solved.inner, solved.inner))

    evaluate = value_and_hypergradient(
        quadratics(),
        inner_solvers.gradient_descent(0.25),
        rule._replace(pullback=pullback),
    )
    out = jax.jit(evaluate)(jnp.zeros(2), jnp.ones(2))
    np.testing.assert_allclose(out.gradient, [2.0, 2.0], rtol=1e-4)
    assert bool(out.info.trustworthy)
    assert len(out.warm_start.rule) == 2


def test_c22_no_field_that_nothing_reads_and_states_are_annotated():
    fields = set(hypergradients.Hypergradient._fields)
    assert not fields & {"pointwise", "exact"}
    properties = ("inner", "outer", "step", "key")
    state = bilevel.problem.SolverState
    assert all(get_type_hints(vars(state)[p].fget)["return"] for p in properties)


def test_p6_numbers_of_numpy_are_numbers():
    """And what is none is refused where it is given."""
    matrix = jnp.diag(jnp.array([1.0, 2.0]))
    solver = linear_solvers.cg(max_steps=np.int64(80))
    solution, _ = jax.jit(lambda b: solver.solve(lambda u: matrix @ u, b, None, None))(
        jnp.ones(2)
    )
    np.testing.assert_allclose(solution, [1.0, 0.5], rtol=1e-6)
    newton = inner_solvers.newton(max_steps=np.int64(3), max_cg_steps=np.int64(3))
    assert newton.max_steps == 3
    inner_solvers.gradient_descent(np.float32(0.1), max_steps=np.int32(3))
    for wrong in (80.5, "80", 0, True):
        with pytest.raises(ValueError, match="max_steps must be an integer >= 1"):
            linear_solvers.cg(max_steps=wrong)
        with pytest.raises(ValueError, match="max_cg_steps must be an integer >= 1"):
            inner_solvers.newton(max_cg_steps=wrong)
