"""Functions of the user's that close over values being differentiated; structures.

Every function that a solver or a rule takes from a user closes here over a value c, and
the derivative in c is held against the closed form, by every rule that knows it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import extensions
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rules import ROWS

import bilevel
from bilevel import inner_problem, inner_solvers, linear_solvers, preconditioners
from bilevel.hypergradients import (
    implicit,
    nudged,
    nudged_by_element,
    one_step,
    truncated,
    unrolled,
)
from bilevel.solvers import two_loop

CURVATURES = jnp.array([1.0, 2.0, 4.0])
POINT = jnp.array([0.3, -1.2, 2.0])
FACTOR = jnp.array(0.7)
WEIGHTS = jnp.array([1.0, -2.0, 0.5])


def objective(w: Any, x: Any, factor: Any) -> jax.Array:
    """Its argmin is factor * x."""
    return jnp.sum(CURVATURES * (w - factor * x) ** 2) / 2


def outer(w: Any) -> jax.Array:
    return jnp.sum(WEIGHTS * w) + jnp.sum(w**2) / 2


def at_argmin(x: Any, c: Any) -> jax.Array:
    return outer(c * x)


DESCENT = inner_solvers.gradient_descent(0.25, max_steps=120, rtol=0.0)
EXACT = {
    "implicit": implicit(),
    "implicit, dense": implicit(linear_solvers.dense()),
    "unrolled": unrolled(),
    "unrolled, segments": unrolled(rematerialize="segments"),
    "unrolled, mixed mode": unrolled(mixed_mode=True),
    "unrolled, forward mode": unrolled(mode="forward"),
    "truncated": truncated(100),
    "nudged": nudged(1e-3),
}


class Case(NamedTuple):
    """A user's function that closes over c.

    Attributes:
        solver: `c -> inner solver`.
        rules: `c -> rules by name`.
        closes: the inner objective closes over c as well.
        preconditioner: `c -> preconditioner`.
    """

    solver: Callable[[Any], Any]
    rules: Callable[[Any], dict[str, Any]]
    closes: bool = False
    preconditioner: Callable[[Any], Any] = lambda c: None


def only(*names: str) -> Callable[[Any], dict[str, Any]]:
    return lambda c: {name: EXACT[name] for name in names}


def about_inverse(c: Any) -> Any:
    """A preconditioner that closes over c: a multiple of the inverse."""
    return preconditioners.from_function(lambda w, x, b: lambda r: c * r / CURVATURES)


CASES = {
    "objective": Case(lambda c: DESCENT, lambda c: EXACT, closes=True),
    "mapping": Case(
        lambda c: inner_solvers.fixed_point(
            lambda w, x, b: w - 0.2 * CURVATURES * (w - c * x), max_steps=200, rtol=0.0
        ),
        lambda c: {
            "implicit": implicit(),
            "implicit, dense": implicit(linear_solvers.dense(symmetric=False)),
            **{name: EXACT[name] for name in EXACT if "rolled" in name},
            "truncated": truncated(190),
        },
    ),
    "mapping, one step": Case(
        lambda c: inner_solvers.fixed_point(lambda w, x, b: c * x + 0 * w),
        lambda c: {"one step": one_step()},
    ),
    "solution": Case(
        lambda c: inner_solvers.closed_form(lambda w, x, b: c * x),
        only("implicit", "implicit, dense"),
        closes=True,
    ),
    "solution, differentiable": Case(
        lambda c: inner_solvers.closed_form(lambda w, x, b: c * x, differentiable=True),
        only("implicit", "implicit, dense", "unrolled", "unrolled, forward mode"),
    ),
    "solution, tilted": Case(
        lambda c: inner_solvers.closed_form(
            lambda w, x, b, tilt: c * x - tilt / CURVATURES, tilted=True
        ),
        only("implicit", "nudged"),
        closes=True,
    ),
    "preconditioner": Case(
        lambda c: DESCENT,
        only("implicit", "nudged"),
        closes=True,
        preconditioner=about_inverse,
    ),
    "preconditioner of Newton": Case(
        lambda c: inner_solvers.newton(),
        only("implicit", "nudged"),
        closes=True,
        preconditioner=about_inverse,
    ),
    "nudge": Case(
        lambda c: DESCENT,
        lambda c: {"nudged": nudged(1e-3 * c)},
        closes=True,
    ),
    "tilt": Case(
        lambda c: DESCENT,
        lambda c: {
            "nudged, per element": nudged_by_element(
                lambda w, x, v: c * jnp.ones_like(w)
            )
        },
        closes=True,
    ),
    "update of a block": Case(
        lambda c: inner_solvers.block_coordinate(
            [("w",)], lambda s, g: s - 0.2 * c * g, max_steps=300, rtol=0.0
        ),
        only("implicit", "unrolled", "unrolled, forward mode"),
        closes=True,
    ),
    "step size": Case(
        lambda c: inner_solvers.gradient_descent(0.3 * c, max_steps=150, rtol=0.0),
        lambda c: EXACT,
        closes=True,
    ),
    "step size of blocks": Case(
        lambda c: inner_solvers.block_coordinate([("w",)], 0.3 * c, max_steps=150),
        only("implicit", "unrolled", "unrolled, forward mode", "truncated"),
        closes=True,
    ),
    "optimiser": Case(
        lambda c: inner_solvers.gradient_descent(
            optax.chain(optax.clip(10.0), optax.sgd(0.3 * c)), max_steps=150, rtol=0.0
        ),
        lambda c: EXACT,
        closes=True,
    ),
    "optimiser with a state": Case(
        lambda c: inner_solvers.gradient_descent(
            optax.inject_hyperparams(optax.sgd)(0.3 * c), max_steps=150, rtol=0.0
        ),
        only("implicit", "unrolled", "nudged"),
        closes=True,
    ),
}
CELLS = [
    (case, rule) for case, row in CASES.items() for rule in row.rules(jnp.array(0.7))
]
FORWARD = ("implicit", "implicit, dense", "unrolled", "truncated")


def value(name: str, rule: str) -> Callable[[Any, Any], jax.Array]:
    """The outer objective at the solution as a function of x and c, by `argmin`."""
    case = CASES[name]

    def loss(x: Any, c: Any) -> jax.Array:
        blocks = "block" in name

        def inner(w: Any, x: Any, b: Any) -> jax.Array:
            w = w["w"] if blocks else w
            return objective(w, x, c if case.closes else 0.7)

        solve = bilevel.argmin(
            inner,
            case.solver(c),
            case.rules(c)[rule],
            on_untrustworthy="ignore",
            preconditioner=case.preconditioner(c),
        )
        start = jnp.zeros(3)
        found, _ = solve({"w": start} if blocks else start, x)
        return outer(found["w"] if blocks else found)

    return loss


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("case", "rule"), CELLS)
@pytest.mark.thinned(3)
def test_closures_over_what_is_differentiated(case: str, rule: str, jit: bool):
    gradient = jax.grad(value(case, rule), argnums=(0, 1))
    expected = jax.grad(at_argmin, argnums=(0, 1))(POINT, FACTOR)
    got = (jax.jit(gradient) if jit else gradient)(POINT, FACTOR)
    tolerance = 1e-6 if rule.startswith("nudged") else 1e-9
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("case", "rule"), [cell for cell in CELLS if cell[1] in FORWARD]
)
@pytest.mark.thinned(3)
def test_closures_in_forward_mode(case: str, rule: str):
    got = jax.jit(jax.jacfwd(value(case, rule), argnums=1))(POINT, FACTOR)
    expected = jax.grad(at_argmin, argnums=1)(POINT, FACTOR)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.thinned(3)
def test_closures_of_a_certified_hypergradient(case: str):
    """Also where `value_and_hypergradient` itself is differentiated once more."""
    name = case
    row = CASES[name]
    rule = next(iter(row.rules(FACTOR)))

    def gradient(x: Any, c: Any) -> Any:
        blocks = "block" in name

        def inner(w: Any, x: Any, b: Any) -> jax.Array:
            return objective(w["w"] if blocks else w, x, c if row.closes else 0.7)

        def outside(w: Any, x: Any, b: Any) -> jax.Array:
            return outer(w["w"] if blocks else w) * c

        evaluate = bilevel.value_and_hypergradient(
            bilevel.Problem(inner, outside, preconditioner=row.preconditioner(c)),
            row.solver(c)._replace(rtol=1e-13),  # with 0, descent never converges
            row.rules(c)[rule],
        )
        start = {"w": jnp.zeros(3)} if blocks else jnp.zeros(3)
        return evaluate(start, x)

    out = jax.jit(gradient)(POINT, FACTOR)
    expected = jax.grad(lambda x: at_argmin(x, FACTOR) * FACTOR)(POINT)
    tolerance = 1e-6 if "nudged" in rule else 1e-9
    np.testing.assert_allclose(out.gradient, expected, rtol=tolerance)
    assert bool(out.info.trustworthy)


@pytest.mark.parametrize("rule", ["unrolled", "unrolled, segments", "truncated"])
@pytest.mark.parametrize("kind", ["number", "sgd", "momentum"])
def test_a_step_size_is_learned(rule: str, kind: str):
    """Few steps, so that the result depends on the step size."""
    rules = {**EXACT, "truncated": truncated(3)}

    def make(a: Any) -> Any:
        return {"number": a, "sgd": optax.sgd(a), "momentum": optax.sgd(a, 0.5)}[kind]

    def loss(a: Any) -> jax.Array:
        solver = inner_solvers.gradient_descent(make(a), max_steps=5, rtol=0.0)
        solve = bilevel.argmin(
            lambda w, x, b: objective(w, x, 1.0),
            solver,
            rules[rule],
            on_untrustworthy="ignore",
        )
        return outer(solve(jnp.zeros(3), POINT)[0])

    def by_hand(a: Any) -> jax.Array:
        w, trace = jnp.zeros(3), jnp.zeros(3)
        kept = 3 if rule == "truncated" else 5
        for step in range(5):
            length = a if step >= 5 - kept else jax.lax.stop_gradient(a)
            trace = (
                CURVATURES * (w - POINT) + (0.5 if kind == "momentum" else 0) * trace
            )
            w = w - length * trace
        return outer(w)

    expected = jax.grad(by_hand)(0.1)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.1), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(loss)(0.1), expected, rtol=1e-12)
    if rule == "unrolled":
        np.testing.assert_allclose(jax.jacfwd(loss)(0.1), expected, rtol=1e-12)


def test_line_search_that_closes_over_a_traced_value_is_refused():
    def loss(a: Any) -> jax.Array:
        optimizer = optax.chain(
            optax.sgd(a),
            optax.scale_by_backtracking_linesearch(max_backtracking_steps=5),
        )
        solver = inner_solvers.gradient_descent(optimizer, max_steps=5)
        solve = bilevel.argmin(lambda w, x, b: objective(w, x, 1.0), solver)
        return outer(solve(jnp.zeros(3), POINT * a)[0])

    with pytest.raises(ValueError, match="a line search"):
        jax.grad(loss)(0.1)


def test_functions_that_cannot_be_traced_are_used_as_they_are():
    """A solution by NumPy works outside of `jit`."""
    solver = inner_solvers.closed_form(
        lambda w, x, b: jnp.asarray(np.asarray(x, np.float64) * 0.7)
    )
    solve = bilevel.argmin(
        lambda w, x, b: objective(w, x, 0.7), solver, on_untrustworthy="ignore"
    )
    got = jax.grad(lambda x: outer(solve(jnp.zeros(3), x)[0]))(POINT)
    expected = jax.grad(at_argmin)(POINT, FACTOR)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_functions_of_one_name_are_refused():
    solver = inner_solvers.fixed_point(lambda w, x, b: 0.5 * (w + x))
    function = inner_problem.UserFunction("mapping", lambda: 1.0, lambda *_: ())
    rule = implicit()._replace(functions=(function,))
    solve = bilevel.argmin(lambda w, x, b: objective(w, x, 1.0), solver, rule)
    with pytest.raises(ValueError, match=r"names of their own.*got \['mapping'\]"):
        solve(jnp.zeros(3), POINT)


# Structures.


def lagrangian(z: Any, x: Any, _: Any) -> jax.Array:
    return jnp.sum((z["w"] - x) ** 2) / 2 + z["l"] * (jnp.sum(z["w"]) - 1)


def kkt(z: Any, x: Any, _: Any) -> Any:
    size = len(x)
    matrix = jnp.block(
        [[jnp.eye(size), jnp.ones((size, 1))], [jnp.ones((1, size)), jnp.zeros((1, 1))]]
    )
    solution = jnp.linalg.solve(matrix, jnp.append(x, 1.0))
    return {"w": solution[:size], "l": solution[size]}


CORNERS = jnp.array([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(None, id="default"),
        pytest.param(implicit(linear_solvers.dense()), id="dense"),
        pytest.param(implicit(linear_solvers.normal_cg()), id="normal_cg"),
        pytest.param(implicit(linear_solvers.dense(symmetric=False)), id="dense, LU"),
        pytest.param(implicit(extensions.minres(rtol=1e-12)), id="extension: minres"),
    ],
)
@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    "jit", [True, pytest.param(False, marks=pytest.mark.thorough)], ids=["jit", "eager"]
)
def test_saddle_of_a_lagrangian_is_right_and_trusted(rule: Any, jit: bool):
    """w = x - mean(x) + 1/3, F = |w|^2 / 2: dF/dx = w - mean(w)."""
    solver = inner_solvers.closed_form(kkt, structure="symmetric")
    problem = bilevel.Problem(lagrangian, lambda z, x, b: jnp.sum(z["w"] ** 2) / 2)
    evaluate = bilevel.value_and_hypergradient(problem, solver, rule)
    start = {"w": jnp.zeros(3), "l": jnp.zeros(())}
    compiled = jax.jit if jit else lambda function: function
    out = compiled(evaluate)(start, CORNERS)
    np.testing.assert_allclose(out.gradient, [-4 / 3, -1 / 3, 5 / 3], rtol=1e-9)
    assert bool(out.info.trustworthy), out.info
    solve = bilevel.argmin(lagrangian, solver, rule, on_untrustworthy="nan")
    loss = lambda x: jnp.sum(solve(start, x)[0]["w"] ** 2) / 2
    got = compiled(jax.grad(loss))(CORNERS)
    np.testing.assert_allclose(got, [-4 / 3, -1 / 3, 5 / 3], rtol=1e-9)
    forward = compiled(jax.jacfwd(loss))(CORNERS)
    np.testing.assert_allclose(forward, got, rtol=1e-9)
    hessian = compiled(jax.hessian(loss))(CORNERS)
    np.testing.assert_allclose(hessian, jnp.eye(3) - 1 / 3, atol=1e-9)


def test_saddle_that_is_not_said_to_be_one_is_not_trusted():
    problem = bilevel.Problem(lagrangian, lambda z, x, b: jnp.sum(z["w"] ** 2) / 2)
    solver = inner_solvers.closed_form(kkt)
    out = bilevel.value_and_hypergradient(problem, solver)(
        {"w": jnp.zeros(3), "l": jnp.zeros(())}, CORNERS
    )
    assert not bool(out.info.trustworthy)


def test_positive_definite_solver_at_a_saddle_is_refused():
    solver = inner_solvers.closed_form(kkt, structure="symmetric")
    solve = bilevel.argmin(lagrangian, solver, implicit(linear_solvers.cg()))
    start = {"w": jnp.zeros(3), "l": jnp.zeros(())}
    with pytest.raises(ValueError, match=r"positive-definite matrix.*a saddle"):
        jax.grad(lambda x: solve(start, x)[0]["l"])(CORNERS)


def equality(residual: Callable[[Any, Any, Any], jax.Array]) -> Any:
    """min over w of G subject to residual(w, x, batch) = 0, by Newton's method.

    A solver of an outsider's, with a multiplier among its unknowns; G is quadratic and
    the constraint linear, so that one step is the solution.
    """

    def stationarity(oracle: Any, z: Any, p: Any) -> Any:
        def constraint(w: Any) -> jax.Array:
            return oracle.functions["residual"](p, w, p.outer, p.batch)

        slope, pull = jax.vjp(constraint, z["inner"])
        gradient = oracle.gradient(z["inner"], p)
        force = pull(z["multiplier"])[0]
        return {
            "inner": jax.tree.map(jnp.add, gradient, force),
            "multiplier": slope,
        }

    def step(oracle: Any, z: Any, state: Any, p: Any) -> Any:
        flat, unravel = jax.flatten_util.ravel_pytree(z)
        residual_of = lambda v: jax.flatten_util.ravel_pytree(
            stationarity(oracle, unravel(v), p)
        )[0]
        move = jnp.linalg.solve(jax.jacfwd(residual_of)(flat), residual_of(flat))
        info = inner_solvers.StepInfo(
            jnp.linalg.norm(residual_of(flat)), None, jnp.zeros((), bool)
        )
        return unravel(flat - move), state, info

    def extend(oracle: Any, inner: Any, p: Any) -> Any:
        shape = oracle.functions["residual"](p, inner, p.outer, p.batch)
        return {"inner": inner, "multiplier": jnp.zeros_like(shape)}

    return inner_solvers.InnerSolver(
        init=lambda *_: (),
        step=step,
        optimality=stationarity,
        structure="symmetric",
        max_steps=5,
        rtol=None,
        functions=(
            inner_problem.UserFunction("residual", residual, lambda *args: args),
        ),
        unknowns=inner_problem.Unknowns(extend, lambda z: z["inner"]),
    )


def test_multipliers_are_unknowns_that_the_user_does_not_see():
    """The same constrained problem; the constraint's level is differentiated too."""
    quadratic = lambda w, x, b: jnp.sum((w["a"] - x) ** 2) / 2

    def loss(x: Any, level: Any) -> jax.Array:
        solver = equality(lambda w, x, b: jnp.sum(w["a"])[None] - level)
        solve = bilevel.argmin(quadratic, solver, on_untrustworthy="nan")
        inner, _ = solve({"a": jnp.zeros(3)}, x)
        assert set(inner) == {"a"}
        return jnp.sum(inner["a"] ** 2) / 2

    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(CORNERS, 1.0)
    np.testing.assert_allclose(got[0], [-4 / 3, -1 / 3, 5 / 3], rtol=1e-9)
    np.testing.assert_allclose(got[1], 1 / 3, rtol=1e-9)
    problem = bilevel.Problem(quadratic, lambda w, x, b: jnp.sum(w["a"] ** 2) / 2)
    solver = equality(lambda w, x, b: jnp.sum(w["a"])[None] - 1.0)
    out = jax.jit(bilevel.value_and_hypergradient(problem, solver))(
        {"a": jnp.zeros(3)}, CORNERS
    )
    np.testing.assert_allclose(out.gradient, got[0], rtol=1e-9)
    assert bool(out.info.trustworthy)
    outer_loop = two_loop(problem, solver, outer_optimizer=optax.sgd(0.1))
    state = outer_loop.init({"a": jnp.zeros(3)}, CORNERS, jax.random.key(0))
    state, _ = bilevel.run(outer_loop, state, bilevel.Batches(), num_steps=3)
    assert set(state.inner) == {"a"}
    with pytest.raises(ValueError, match="constraints of this inner solver"):
        bilevel.value_and_hypergradient(problem, solver, nudged(0.01))(
            {"a": jnp.zeros(3)}, CORNERS
        )


# An initial point that is a function of x.


def initial(x: Any, batch: Any) -> Any:
    del batch
    return x["start"]


def task(w: Any, x: Any, batch: Any) -> jax.Array:
    return jnp.sum(CURVATURES * (w - batch) ** 2) / 2


MAML = bilevel.Problem(task, lambda w, x, b: outer(w - b), initial=initial)
TARGET = jnp.array([1.0, 0.0, -1.0])


def adapted(x: Any) -> jax.Array:
    """Four steps by hand, from x."""
    w = x["start"]
    for _ in range(4):
        w = w - 0.1 * CURVATURES * (w - TARGET)
    return outer(w - TARGET)


@pytest.mark.parametrize(
    "rule",
    [
        unrolled(),
        unrolled(rematerialize="segments"),
        unrolled(mixed_mode=True),
        unrolled(mode="forward"),
    ],
)
def test_maml_through_value_and_hypergradient_and_two_loop(rule: Any):
    solver = inner_solvers.gradient_descent(0.1, max_steps=4, rtol=0.0)
    x, batches = {"start": POINT}, bilevel.Batches(TARGET, TARGET)
    evaluate = bilevel.value_and_hypergradient(MAML, solver, rule)
    expected = jax.grad(adapted)(x)["start"]
    for call in (evaluate, jax.jit(evaluate)):
        out = call(None, x, batches)
        np.testing.assert_allclose(out.value, adapted(x), rtol=1e-12)
        np.testing.assert_allclose(out.gradient["start"], expected, rtol=1e-12)
    # It is the derivative of the program, not of the argmin, which start does not move.
    assert not bool(out.info.trustworthy)
    outer_loop = two_loop(MAML, solver, rule, outer_optimizer=optax.sgd(0.1))
    state = outer_loop.init(jnp.zeros(3), x, jax.random.key(0))
    state, _ = bilevel.run(outer_loop, state, batches, num_steps=2)
    by_hand = x
    for _ in range(2):
        slope = jax.grad(adapted)(by_hand)
        by_hand = jax.tree.map(lambda p, g: p - 0.1 * g, by_hand, slope)
    np.testing.assert_allclose(state.outer["start"], by_hand["start"], rtol=1e-12)


def test_initial_points_that_a_rule_does_not_see():
    solver = inner_solvers.gradient_descent(0.1, max_steps=4)
    evaluate = bilevel.value_and_hypergradient(MAML, solver)
    with pytest.raises(ValueError, match=r"needs hypergradients.unrolled\(\)"):
        evaluate(None, {"start": POINT}, bilevel.Batches(TARGET, TARGET))
    evaluate = bilevel.value_and_hypergradient(MAML, solver, unrolled())
    with pytest.raises(ValueError, match="expected None in its place"):
        evaluate(POINT, {"start": POINT}, bilevel.Batches(TARGET, TARGET))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.thinned(4)
def test_initial_point_is_where_every_rule_starts(row: Any):
    """x enters the objective too, and from a minimum no step moves."""
    problem = bilevel.Problem(
        lambda w, x, b: objective(w, x, 1.0),
        lambda w, x, b: outer(w),
        initial=lambda x, b: x,
    )
    rule = row.rule(row.nudge)
    evaluate = bilevel.value_and_hypergradient(problem, row.solver, rule)
    out = jax.jit(evaluate)(None, POINT)
    np.testing.assert_allclose(out.value, outer(POINT), rtol=1e-12)
