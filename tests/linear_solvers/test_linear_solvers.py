"""Contracts that every linear solver keeps, and what each promises by itself."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import extensions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from reference_problems import distance

from bilevel.linear_solvers import cg, dense, neumann, normal_cg

# The factory receives the size of the matrix: only neumann must be told of it.
ROWS = [
    ("cg", lambda size: cg()),
    ("dense", lambda size: dense()),
    ("dense, LU", lambda size: dense(symmetric=False)),
    ("neumann", lambda size: neumann(0.8 / size, 200)),
    ("normal_cg", lambda size: normal_cg()),
    ("extension: minres", lambda size: extensions.minres()),
]
every_solver = pytest.mark.parametrize(
    "factory", [pytest.param(functools.cache(f), id=name) for name, f in ROWS]
)


def positive_definite(
    seed: int, condition: float, dim: int = 5, largest: float = 2.0
) -> jax.Array:
    """A random matrix whose eigenvalues are log-spaced up to `largest`."""
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (dim, dim)))[0]
    values = largest * jnp.logspace(-np.log10(condition), 0, dim)
    matrix = (basis * values[None, :]) @ basis.T
    return (matrix + matrix.T) / 2


class Pair(NamedTuple):
    """A pytree of two leaves, one of them a dict."""

    first: Any
    second: Any


MATRIX = positive_definite(0, 4.0)
RHS = Pair(jnp.array([1.0, -2.0]), {"a": jnp.array([[0.5], [3.0]]), "b": jnp.ones(())})


def product(matrix: jax.Array) -> Callable[[Any], Any]:
    def matvec(u: Any) -> Any:
        flat, unravel = ravel_pytree(u)
        return unravel(matrix @ flat)

    return matvec


@functools.partial(jax.jit, static_argnums=0)
def solve(solver: Any, matrix: jax.Array, rhs: Any) -> Any:
    return solver.solve(product(matrix), rhs, None, None)


def exact(matrix: jax.Array, rhs: Any) -> Any:
    flat, unravel = ravel_pytree(rhs)
    return unravel(jnp.linalg.solve(matrix, flat))


# Contracts.


@every_solver
def test_solves_trees_and_reports_the_true_residual(factory: Callable):
    solution, info = solve(factory(2.0), MATRIX, RHS)
    assert distance(solution, exact(MATRIX, RHS)) <= 1e-6  # cg: 1e-7 by default
    residual = jax.tree.map(jnp.subtract, product(MATRIX)(solution), RHS)
    sizes = [jnp.linalg.norm(ravel_pytree(t)[0]) for t in (residual, RHS)]
    # A residual near rounding has few correct digits.
    np.testing.assert_allclose(
        info.relative_residual, sizes[0] / sizes[1], rtol=1e-3, atol=1e-14
    )
    assert all(jnp.shape(field) == () for field in info if field is not None)
    assert bool(info.converged)
    assert bool(info.positive_definite)
    assert info.num_steps.dtype == jnp.int32
    assert float(info.error) <= 1e-6


@every_solver
@pytest.mark.thinned(9)
def test_jit_equals_eager_and_vmap_equals_loop(factory: Callable):
    solver = factory(2.0)
    matrices = jnp.stack([positive_definite(seed, 4.0) for seed in range(3)])
    factors = jnp.array([1.0, 0.0, -1e-3])  # one lane has nothing to do
    sides = jax.tree.map(lambda x: jnp.stack([f * x for f in factors]), RHS)

    solutions, infos = jax.jit(jax.vmap(lambda m, b: solve(solver, m, b)))(
        matrices, sides
    )
    for lane in range(3):
        rhs = jax.tree.map(lambda x, lane=lane: x[lane], sides)
        expected, info = solve(solver, matrices[lane], rhs)
        got = jax.tree.map(lambda x, lane=lane: x[lane], solutions)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
        # One step more or less where rounding decides.
        assert abs(int(infos.num_steps[lane]) - int(info.num_steps)) <= 1
        assert bool(infos.converged[lane])
    eager, _ = solver.solve(product(matrices[0]), RHS, None, None)
    assert distance(solve(solver, matrices[0], RHS)[0], eager) <= 1e-12


@every_solver
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # cg asks for the square root of the rounding unit.
    [(jnp.float32, 1e-3), (jnp.bfloat16, 0.1)],
)
def test_narrow_types(factory: Callable, dtype: Any, tolerance: float):
    matrix = MATRIX.astype(dtype)
    rhs = jax.tree.map(lambda x: x.astype(dtype), RHS)
    solution, info = solve(factory(2.0), matrix, rhs)
    assert {x.dtype for x in jax.tree.leaves(solution)} == {jnp.dtype(dtype)}
    assert distance(solution, exact(MATRIX, RHS)) <= tolerance
    assert info.relative_residual.dtype == jnp.float32
    assert float(info.relative_residual) <= tolerance
    assert bool(jnp.isfinite(info.error))


@every_solver
def test_zero_and_tiny_right_hand_sides(factory: Callable):
    solver = factory(2.0)
    expected = exact(MATRIX, RHS)
    for size in (0.0, 1e-300, 1e-30, 1e30):
        rhs = jax.tree.map(lambda x, s=size: s * x, RHS)
        solution, info = solve(solver, MATRIX, rhs)
        assert bool(info.converged)
        assert bool(info.positive_definite)
        assert bool(jnp.isfinite(info.relative_residual))
        if size == 0:
            assert not any(jnp.any(x) for x in jax.tree.leaves(solution))
            assert float(info.relative_residual) == 0
            assert float(info.error) == 0
        else:
            back = jax.tree.map(lambda x, s=size: x / s, solution)
            assert distance(back, expected) <= 1e-6


@every_solver
def test_tiny_right_hand_sides_in_float32(factory: Callable):
    rhs = jax.tree.map(lambda x: (1e-30 * x).astype(jnp.float32), RHS)
    matrix = MATRIX.astype(jnp.float32)
    solution, info = solve(factory(2.0), matrix, rhs)
    back = jax.tree.map(lambda x: x.astype(jnp.float64) / 1e-30, solution)
    assert distance(back, exact(MATRIX, RHS)) <= 1e-3
    assert bool(info.converged)


@every_solver
def test_multiplying_the_problem_by_a_constant_changes_nothing(factory: Callable):
    expected = solve(factory(2.0), MATRIX, RHS)
    for size in (1e-4, 1e4):
        rhs = jax.tree.map(lambda x, s=size: s * x, RHS)
        got = solve(factory(2.0 * size), size * MATRIX, rhs)
        assert distance(got[0], expected[0]) <= 1e-6
        assert int(got[1].num_steps) == int(expected[1].num_steps)
        np.testing.assert_allclose(
            got[1].relative_residual,
            expected[1].relative_residual,
            rtol=0.1,
            atol=1e-13,
        )


@every_solver
def test_nan_ends_the_solve_and_is_reported(factory: Callable):
    rhs = jax.tree.map(lambda x: x * jnp.nan, RHS)
    solution, info = solve(factory(2.0), MATRIX, rhs)
    assert all(bool(jnp.all(jnp.isnan(x))) for x in jax.tree.leaves(solution))
    assert not bool(info.converged)


# Conjugate gradients.

CONDITIONS = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)


@pytest.fixture(scope="module")
def random_solves() -> Any:
    """Matrices of every condition number, four of each, and what CG says of them."""
    matrices = jnp.stack(
        [positive_definite(s, c, dim=20) for c in CONDITIONS for s in range(4)]
    )
    sides = jax.random.normal(jax.random.key(7), matrices.shape[:2])
    solver = cg()
    solutions, infos = jax.jit(
        jax.vmap(lambda a, b: solver.solve(lambda u: a @ u, b, None, None))
    )(matrices, sides)
    expected = jax.vmap(jnp.linalg.solve)(matrices, sides)
    errors = jnp.linalg.norm(solutions - expected, axis=1) / jnp.linalg.norm(
        expected, axis=1
    )
    return matrices, errors, infos


def test_cg_reaches_its_tolerance_at_every_condition_number(random_solves: Any):
    _, errors, infos = random_solves
    assert bool(jnp.all(infos.converged))
    # Rounding: kappa 1e6 leaves 1e-10 in float64, far below 1e-7.
    assert float(jnp.max(errors)) <= 2e-7
    assert float(jnp.max(infos.error)) <= 2e-7


def test_cg_error_estimate_bounds_the_error(random_solves: Any):
    _, errors, infos = random_solves
    ratio = np.asarray(errors / infos.error)
    # The residual norm over the smallest eigenvalue: an upper bound up to the error of
    # the Ritz value, and pessimistic by at most the condition number.
    assert ratio.max() <= 1.5
    assert np.median(ratio) >= 1e-3


def test_cg_knows_the_spectrum(random_solves: Any):
    matrices, _, infos = random_solves
    values = np.linalg.eigvalsh(matrices)
    # Ritz values: inside the spectrum; at 1e6 CG ends before it has
    # seen the last eigenvector.
    assert np.all(infos.smallest >= values[:, 0] * (1 - 1e-6))
    assert np.all(infos.smallest <= values[:, 0] * 10)
    assert np.all(infos.largest <= values[:, -1] * (1 + 1e-6))
    assert np.all(infos.largest >= values[:, -1] * 0.05)


def test_cg_reports_its_cap():
    matrix = positive_definite(0, 1e4, dim=20)
    _, info = cg(max_steps=3).solve(lambda u: matrix @ u, jnp.ones(20), None, None)
    assert int(info.num_steps) == 3
    assert not bool(info.converged)
    assert float(info.relative_residual) > 1e-3


def test_cg_flags_negative_curvature_and_keeps_the_iterate_before_it():
    matrix = jnp.diag(jnp.array([2.0, 1.0, -0.5]))
    solution, info = cg().solve(
        lambda u: matrix @ u, jnp.array([1.0, 1.0, 0.5]), None, None
    )
    assert not bool(info.positive_definite)
    assert not bool(info.converged)
    assert bool(jnp.all(jnp.isfinite(solution)))
    solution, info = cg().solve(lambda u: -u, jnp.ones(3), None, None)
    assert not bool(info.positive_definite)
    np.testing.assert_array_equal(solution, jnp.zeros(3))


def test_cg_preconditioned():
    diagonal = jnp.logspace(0, 5, 12)
    near = positive_definite(1, 3.0, dim=12)
    matrix = jnp.sqrt(diagonal)[:, None] * near * jnp.sqrt(diagonal)[None, :]
    rhs = jnp.ones(12)
    plain, plain_info = cg().solve(lambda u: matrix @ u, rhs, None, None)
    solver = jax.jit(
        lambda b: cg().solve(lambda u: matrix @ u, b, None, lambda r: r / diagonal)
    )
    solution, info = solver(rhs)
    expected = jnp.linalg.solve(matrix, rhs)
    # The tolerance is in the energy norm then.
    assert distance(solution, expected) <= 1e-5
    assert distance(plain, expected) <= 1e-5
    assert int(info.num_steps) < int(plain_info.num_steps)
    assert bool(info.converged)


def test_cg_warm_start_takes_fewer_steps():
    matrix = positive_definite(2, 1e3, dim=20)
    rhs = jnp.cos(jnp.arange(20.0))
    solver = jax.jit(lambda b, u: cg().solve(lambda v: matrix @ v, b, u, None))
    solution, cold = solver(rhs, jnp.zeros(20))
    near = solution * (1 + 1e-5 * jnp.sin(jnp.arange(20.0)))
    again, warm = solver(rhs, near)
    assert int(warm.num_steps) < int(cold.num_steps)
    assert distance(again, jnp.linalg.solve(matrix, rhs)) <= 2e-7
    done, finished = solver(rhs, jnp.linalg.solve(matrix, rhs))
    assert bool(finished.converged)
    assert distance(done, solution) <= 2e-7


def test_cg_damped_solves_the_damped_system():
    solution, info = solve(cg(damping=0.3), MATRIX, RHS)
    expected = exact(MATRIX + 0.3 * jnp.eye(5), RHS)
    assert distance(solution, expected) <= 1e-6
    assert float(info.relative_residual) <= 1e-6


def test_cg_in_float32_stops_where_rounding_lets_nothing_improve():
    matrix = positive_definite(3, 1e5, dim=20).astype(jnp.float32)
    rhs = jnp.ones(20, jnp.float32)
    solution, info = cg(rtol=0.0).solve(lambda u: matrix @ u, rhs, None, None)
    assert int(info.num_steps) < 1000
    assert bool(jnp.all(jnp.isfinite(solution)))
    assert float(info.error) > 1e-4  # and it says that it did not get there


# Neumann, dense, normal equations.


def test_neumann_error_falls_like_the_power_of_the_number_of_terms():
    step, smallest = 0.8 / 2.0, 2.0 / 4.0
    terms = np.array([40, 50, 60])
    expected = exact(MATRIX, RHS)
    errors = [
        distance(solve(neumann(step, int(k)), MATRIX, RHS)[0], expected) for k in terms
    ]
    slope = np.polyfit(terms, np.log(errors), 1)[0]
    # The other eigenvalues have died out after forty terms.
    np.testing.assert_allclose(slope, np.log(1 - step * smallest), rtol=0.02)


@pytest.mark.thorough
def test_neumann_reports_what_it_left_out():
    solution, info = solve(neumann(0.4, 20), MATRIX, RHS)
    error = distance(solution, exact(MATRIX, RHS))
    assert not bool(solve(neumann(0.4, 3), MATRIX, RHS)[1].converged)
    assert 0.5 <= float(info.error) / error <= 2
    diverged = solve(neumann(2.0, 50), MATRIX, RHS)[1]
    assert not bool(diverged.converged)
    assert float(diverged.error) == np.inf
    early = solve(neumann(0.4, 500, rtol=1e-3), MATRIX, RHS)[1]
    assert int(early.num_steps) < 100
    assert float(early.relative_residual) <= 1e-3


def test_neumann_refines_an_initial_guess():
    near = jax.tree.map(lambda x: 1.01 * x, exact(MATRIX, RHS))
    got, _ = neumann(0.4, 10).solve(product(MATRIX), RHS, near, None)
    cold, _ = neumann(0.4, 10).solve(product(MATRIX), RHS, None, None)
    errors = [distance(u, exact(MATRIX, RHS)) for u in (got, cold)]
    assert errors[0] < 0.1 * errors[1]


@pytest.mark.parametrize("symmetric", [True, False])
def test_dense_is_numpy(symmetric: bool):
    matrix = jax.random.normal(jax.random.key(5), (5, 5))
    if symmetric:
        matrix = matrix + matrix.T  # indefinite
    solution, info = solve(dense(symmetric=symmetric), matrix, RHS)
    flat, unravel = ravel_pytree(RHS)
    assert distance(solution, unravel(np.linalg.solve(matrix, flat))) <= 1e-12
    values = np.abs(np.linalg.eigvalsh(matrix)) if symmetric else None
    singular = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(info.largest, singular[0], rtol=1e-12)
    lowest = np.linalg.eigvalsh((matrix + matrix.T) / 2)[0]
    assert bool(info.positive_definite) == bool(lowest > 0)
    if values is None:
        np.testing.assert_allclose(info.smallest, singular[-1], rtol=1e-12)


def test_normal_cg_needs_no_symmetry():
    matrix = jnp.eye(5) + 0.3 * jax.random.normal(jax.random.key(6), (5, 5))
    solution, info = solve(normal_cg(), matrix, RHS)
    assert distance(solution, exact(matrix, RHS)) <= 1e-6
    singular = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(info.smallest, singular[-1], rtol=0.5)
    again, warm = normal_cg().solve(product(matrix), RHS, solution, None)
    assert int(warm.num_steps) < int(info.num_steps)
    assert distance(again, solution) <= 1e-6


@every_solver
def test_can_be_differentiated_inside_custom_linear_solve(factory: Callable):
    solver = factory(2.0)

    def loss(scale: jax.Array) -> jax.Array:
        def matvec(u: Any) -> Any:
            return product(scale * MATRIX)(u)

        solution, _ = jax.lax.custom_linear_solve(
            matvec,
            RHS,
            lambda mv, b: solver.solve(mv, b, None, None),
            symmetric=True,
            has_aux=True,
        )
        return jnp.sum(ravel_pytree(solution)[0])

    total = jnp.sum(ravel_pytree(exact(MATRIX, RHS))[0])
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.0), -total, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cg(rtol=1.0), r"cg: rtol must lie in \[0, 1\), got 1.0"),
        (lambda: cg(max_steps=0), "cg: max_steps must be an integer >= 1, got 0"),
        (lambda: cg(damping=-1.0), "cg: damping must be finite and >= 0, got -1"),
        (lambda: neumann(0.0), "neumann: step_size must be positive and finite, got 0"),
        (lambda: neumann(0.1, 0), "neumann: num_terms must be an integer >= 1, got 0"),
        (lambda: neumann(0.1, rtol=2.0), r"neumann: rtol must lie in \[0, 1\)"),
        (lambda: normal_cg(max_steps=0), "max_steps must be an integer >= 1"),
        (
            lambda: neumann(0.1).solve(lambda u: u, jnp.ones(2), None, lambda r: r),
            "neumann takes no preconditioner",
        ),
        (
            lambda: normal_cg().solve(lambda u: u, jnp.ones(2), None, lambda r: r),
            "normal_cg takes no preconditioner",
        ),
    ],
)
def test_settings_are_checked(build: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("zero", [0.0, 1e-18])
def test_dense_gives_the_minimum_norm_where_the_matrix_is_singular(
    symmetric: bool, zero: float
):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for turn in (np.eye(3), rotation):
        matrix = jnp.array(turn @ np.diag([2.0, zero, 0.5]) @ turn.T)
        inside = jnp.array(turn @ np.array([1.0, 0.0, 3.0]))
        solver = dense(symmetric=symmetric)
        solution, info = solver.solve(
            lambda u, matrix=matrix: matrix @ u, inside, None, None
        )
        expected = turn @ np.array([0.5, 0.0, 6.0])
        np.testing.assert_allclose(solution, expected, rtol=1e-12, atol=1e-12)
        assert bool(info.converged)
        outside = jnp.array(turn @ np.array([1.0, 1.0, 3.0]))
        solution, info = solver.solve(
            lambda u, matrix=matrix: matrix @ u, outside, None, None
        )
        np.testing.assert_allclose(solution, expected, rtol=1e-12, atol=1e-12)
        assert not bool(info.converged)
