"""Contracts that every inner solver keeps, and what each promises by itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_problems import Data, distance, ridge, ridge_data, ridge_solution

import bilevel
from bilevel import inner_solvers, trees

OUTER = jnp.array([-0.8, 0.2, -0.3])
DATA = ridge_data(0)
START = {"a": jnp.zeros(2), "b": jnp.zeros(1)}


def split(w: jax.Array) -> dict[str, jax.Array]:
    return {"a": w[:2], "b": w[2:]}


def join(w: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([w["a"], w["b"]])


def objective(w: Any, x: Any, batch: Data) -> jax.Array:
    """Ridge regression of a dict."""
    return ridge(join(w), x, batch)


def descend(w: Any, x: Any, batch: Data) -> Any:
    gradient = jax.grad(objective)(w, x, batch)
    return jax.tree.map(lambda a, g: (a - 0.4 * g).astype(a.dtype), w, gradient)


def formula(w0: Any, x: Any, batch: Data) -> Any:
    solution = split(ridge_solution(x.astype(float), jax.tree.map(_wide, batch)))
    return jax.tree.map(lambda a, b: b.astype(a.dtype), w0, solution)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float64)


# Name, solver, tolerance in float64 (Adam's steps do not shrink by themselves).
ROWS = [
    ("sgd", inner_solvers.gradient_descent(0.4), 1e-10),
    (
        "momentum",
        inner_solvers.gradient_descent(optax.sgd(0.3, momentum=0.3)),
        1e-10,
    ),
    (
        "adam",
        inner_solvers.gradient_descent(
            optax.adam(optax.exponential_decay(0.1, 30, 0.5)), max_steps=1000, rtol=1e-4
        ),
        1e-3,
    ),
    ("lbfgs", inner_solvers.lbfgs(max_steps=50), 1e-10),
    ("newton", inner_solvers.newton(), 1e-10),
    (
        "fixed_point",
        inner_solvers.fixed_point(descend, structure="positive_definite"),
        1e-10,
    ),
    (
        "block_coordinate",
        inner_solvers.block_coordinate([("a",), ("b",)], 0.4, max_steps=200),
        1e-10,
    ),
    ("closed_form", inner_solvers.closed_form(formula), 1e-12),
]
every_solver = pytest.mark.parametrize(
    ("solver", "tolerance"), [pytest.param(*row[1:], id=row[0]) for row in ROWS]
)


def solve(solver: Any) -> Callable:
    return bilevel.argmin(objective, solver, on_untrustworthy="ignore")


def residual(solver: Any, w: Any, x: Any, batch: Data) -> jax.Array:
    """|gradient|, or |w - T(w)|, as the solver defines it."""
    if "fixed_point" in solver.step.__qualname__:
        return trees.norm(trees.sub(w, descend(w, x, batch)))
    return trees.norm(jax.grad(objective)(w, x, batch))


@every_solver
def test_reaches_the_solution_and_reports_the_truth(solver: Any, tolerance: float):
    compiled = jax.jit(solve(solver))
    inner, info = compiled(START, OUTER, DATA)
    assert distance(inner, split(ridge_solution(OUTER, DATA))) <= tolerance
    assert bool(info.converged)
    assert 1 <= int(info.num_steps) <= solver.max_steps
    assert int(info.num_steps) < 1000
    np.testing.assert_allclose(
        info.residual_norm, residual(solver, inner, OUTER, DATA), rtol=1e-6, atol=1e-15
    )
    assert float(info.relative_residual) <= max(tolerance, 1e-11)
    assert all(jnp.shape(field) == () for field in info[:4])
    # Started at the solution it has next to nothing to do.
    again, more = compiled(inner, OUTER, DATA)
    assert int(more.num_steps) <= 2 or solver.rtol == 1e-4
    assert bool(more.converged)
    assert distance(again, inner) <= 10 * tolerance


@pytest.mark.parametrize(
    "solver",
    [pytest.param(row[1], id=row[0]) for row in ROWS if not row[1].closed_form],
)
@pytest.mark.thinned(3)
def test_cap_is_reported(solver: Any):
    inner, info = jax.jit(solve(solver._replace(max_steps=1)))(START, OUTER, DATA)
    assert int(info.num_steps) == 1
    assert not bool(info.converged)
    np.testing.assert_allclose(
        info.residual_norm, residual(solver, inner, OUTER, DATA), rtol=1e-10
    )
    assert float(info.relative_residual) > 1e-3


@every_solver
@pytest.mark.thinned(99)
def test_vmap_equals_loop(solver: Any, tolerance: float):
    outers = jnp.stack([OUTER, OUTER + 0.3, OUTER - 0.3])
    data = jax.tree.map(lambda *x: jnp.stack(x), *[ridge_data(s) for s in range(3)])
    inner, info = jax.jit(jax.vmap(lambda x, b: solve(solver)(START, x, b)))(
        outers, data
    )
    for lane in range(3):
        batch = jax.tree.map(lambda x, lane=lane: x[lane], data)
        got = jax.tree.map(lambda x, lane=lane: x[lane], inner)
        expected = split(ridge_solution(outers[lane], batch))
        assert distance(got, expected) <= tolerance
    assert bool(jnp.all(info.converged))
    assert info.num_steps.shape == (3,)


@every_solver
@pytest.mark.parametrize(
    ("dtype", "accuracy"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)]
)
@pytest.mark.thinned(9)
def test_narrow_types(solver: Any, tolerance: float, dtype: Any, accuracy: float):
    start, outer, data = jax.tree.map(lambda x: x.astype(dtype), (START, OUTER, DATA))
    inner, info = jax.jit(solve(solver))(start, outer, data)
    assert {x.dtype for x in jax.tree.leaves(inner)} == {jnp.dtype(dtype)}
    expected = split(ridge_solution(OUTER, DATA))
    assert distance(inner, expected) <= max(accuracy, tolerance)
    assert info.residual_norm.dtype == jnp.float32
    if dtype == jnp.float32:
        assert bool(info.converged)


@pytest.mark.parametrize("name", ["sgd", "fixed_point", "block_coordinate"])
def test_jit_equals_eager(name: str):
    # The driver is the same for all; L-BFGS and Newton are slow outside of jit.
    (solver,) = (row[1] for row in ROWS if row[0] == name)
    few = solver._replace(max_steps=3)
    eager, info = solve(few)(START, OUTER, DATA)
    inner, compiled = jax.jit(solve(few))(START, OUTER, DATA)
    assert distance(eager, inner) <= 1e-13
    assert int(info.num_steps) == int(compiled.num_steps)


# By itself.


def rosenbrock(w: jax.Array, x: jax.Array, batch: None) -> jax.Array:
    del batch
    return (1 - w[0]) ** 2 + x * (w[1] - w[0] ** 2) ** 2


@pytest.mark.parametrize(
    "solver", [inner_solvers.newton(), inner_solvers.lbfgs()], ids=["newton", "lbfgs"]
)
def test_nonconvex_starts(solver: Any):
    function = jax.jit(bilevel.argmin(rosenbrock, solver, on_untrustworthy="ignore"))
    # At the second start the Hessian is indefinite.
    for start in ([-1.2, 1.0], [0.0, 3.0], [5.0, -5.0]):
        inner, info = function(jnp.array(start), 100.0)
        np.testing.assert_allclose(inner, [1.0, 1.0], atol=1e-6)
        assert bool(info.converged)


def test_newton_converges_where_float32_allows_no_further_step():
    scales = jnp.logspace(0, 4, 6).astype(jnp.float32)

    def steep(w: jax.Array, x: jax.Array, batch: None) -> jax.Array:
        del batch
        return jnp.sum(scales * jnp.cosh(w - x)) + 1e3

    inner, info = jax.jit(
        bilevel.argmin(steep, inner_solvers.newton(), on_untrustworthy="ignore")
    )(jnp.zeros(6, jnp.float32), jnp.full(6, 1.3, jnp.float32))
    np.testing.assert_allclose(inner, 1.3, atol=1e-4)
    assert bool(info.converged)
    assert int(info.num_steps) < 30


def test_nan_ends_the_solve_and_is_reported():
    for solver in (inner_solvers.newton(), inner_solvers.gradient_descent(0.1)):
        _, info = jax.jit(solve(solver))(START, OUTER * jnp.nan, DATA)
        assert not bool(info.converged)
        assert int(info.num_steps) <= 2


def test_divergence_is_reported():
    solver = inner_solvers.gradient_descent(2.0, max_steps=30)
    _, info = jax.jit(solve(solver))(START, OUTER, DATA)
    assert not bool(info.converged)
    assert float(info.relative_residual) > 1


def test_tolerance_is_relative_to_the_size_of_the_objective():
    def scaled(w: Any, x: Any, batch: Any) -> jax.Array:
        return batch[1] * objective(w, x, batch[0])

    function = jax.jit(
        bilevel.argmin(scaled, inner_solvers.newton(), on_untrustworthy="ignore")
    )
    for size in (1e-8, 1.0, 1e8):
        inner, info = function(START, OUTER, (DATA, size))
        assert distance(inner, split(ridge_solution(OUTER, DATA))) <= 1e-9
        assert bool(info.converged)


def test_block_coordinate_updates_a_block_from_the_newest_values_of_the_others():
    def coupled(w: Any, x: Any, batch: None) -> jax.Array:
        del batch
        a, b = w
        return (a**2 + b**2) / 2 - 0.5 * a * b - x * a

    solver = inner_solvers.block_coordinate(
        [[0], [1]], lambda s, g: jnp.clip(s - g, 0, 1), max_steps=1
    )
    function = bilevel.argmin(coupled, solver, on_untrustworthy="ignore")
    (a, b), info = function((jnp.zeros(()), jnp.zeros(())), jnp.asarray(0.8))
    assert (float(a), float(b)) == (0.8, 0.4)  # at once it would be (0.8, 0)
    np.testing.assert_allclose(info.residual_norm, 0.2, rtol=1e-12)  # a: 0.8 -> 1


def test_closed_form_that_is_wrong_does_not_converge():
    solver = inner_solvers.closed_form(lambda w0, x, b: split(OUTER))
    _, info = solve(solver)(START, OUTER, DATA)
    assert not bool(info.converged)
    assert float(info.residual_norm) > 0.1


def test_optimizers_that_ask_for_values_get_them():
    solver = inner_solvers.gradient_descent(
        optax.chain(
            optax.sgd(1.0),
            optax.scale_by_backtracking_linesearch(max_backtracking_steps=20),
        ),
        max_steps=300,
        rtol=1e-8,
    )
    inner, _ = jax.jit(solve(solver))(START, OUTER, DATA)
    assert distance(inner, split(ridge_solution(OUTER, DATA))) <= 1e-6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: inner_solvers.gradient_descent(-0.1),
            "gradient_descent: the step size must be positive and finite, got -0.1",
        ),
        (
            lambda: inner_solvers.gradient_descent("adam"),
            "expected an optax transformation or a step size, got str",
        ),
        (
            lambda: inner_solvers.gradient_descent(0.1, max_steps=0),
            "gradient_descent: max_steps must be an integer >= 1, got 0",
        ),
        (
            lambda: inner_solvers.newton(rtol=-1.0),
            r"newton: rtol must lie in \[0, 1\), got -1.0",
        ),
        (
            lambda: inner_solvers.newton(max_cg_steps=0),
            "max_cg_steps must be an integer >= 1",
        ),
        (lambda: inner_solvers.lbfgs(memory_size=0), "must be an integer >= 1, got 0"),
        (
            lambda: inner_solvers.fixed_point(descend, max_steps=2.5),
            "fixed_point: max_steps must be an integer",
        ),
        (
            lambda: inner_solvers.block_coordinate([("a",)], -1.0),
            "block_coordinate: the step size must be positive and finite, got -1.0",
        ),
    ],
)
def test_settings_are_checked(build: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (
            inner_solvers.block_coordinate([("a",)], 0.4),
            r"every top-level entry.*exactly once: expected \['a', 'b'\], got \['a'\]",
        ),
        (
            inner_solvers.block_coordinate([("a", "b"), ("b",)], 0.4),
            "exactly once",
        ),
        (
            inner_solvers.fixed_point(lambda w, x, b: w["a"]),
            r"mapping\(inner, ...\) must have the tree structure of inner",
        ),
        (
            inner_solvers.closed_form(lambda w0, x, b: {"a": x, "b": x}),
            r"solution\(...\)\['a'\] must have the shape of the initial inner",
        ),
    ],
)
def test_solvers_that_do_not_fit_the_problem(solver: Any, message: str):
    with pytest.raises(ValueError, match=message):
        solve(solver)(START, OUTER, DATA)


def test_block_coordinate_needs_blocks():
    solver = inner_solvers.block_coordinate([(0,)], 0.4)
    with pytest.raises(ValueError, match="dict, tuple or list of blocks"):
        bilevel.argmin(ridge, solver)(jnp.zeros(3), OUTER, DATA)
