"""The contract of outer algorithms: each member of the list passes all of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import extensions
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import hypergradients, inner_solvers, preconditioners, samplers, solvers
from bilevel.problem import Problem, Solver

DIM = 3
TARGET = jnp.array([0.7, -0.4, 0.2])


def inner_objective(w: Any, x: Any, batch: Any) -> Any:
    """Its minimum is w = x + the mean of the batch, the scalar at x["shift"]."""
    points = batch["points"]
    fit = jnp.mean(jnp.sum((w["a"][None] - x["a"][None] - points) ** 2, axis=1))
    return fit + (w["b"] - x["shift"]) ** 2


def outer_objective(w: Any, x: Any, batch: Any) -> Any:
    points = batch["points"]
    fit = jnp.mean(jnp.sum((w["a"][None] - TARGET[None] - points) ** 2, axis=1))
    return fit + (w["b"] - 1.0) ** 2 + 0.1 * (x["shift"] - 1.0) ** 2


PROBLEM = Problem(inner_objective, outer_objective)
INNER = {"a": jnp.zeros(DIM), "b": jnp.zeros(())}
OUTER = {"a": jnp.zeros(DIM), "shift": jnp.zeros(())}


class Row(NamedTuple):
    """An outer algorithm.

    Attributes:
        make: `problem -> solver`.
        num_steps: after which it is near the solution of `PROBLEM`.
    """

    make: Callable[[Problem], Solver]
    num_steps: int = 80


def preconditioned(problem: Problem) -> Solver:
    problem = problem._replace(preconditioner=preconditioners.jacobi(every=2))
    return solvers.two_loop(problem, outer_optimizer=optax.sgd(0.2))


ROWS = {
    "two_loop": Row(
        lambda problem: solvers.two_loop(problem, outer_optimizer=optax.sgd(0.2))
    ),
    "two_loop, unrolled, Adam": Row(
        lambda problem: solvers.two_loop(
            problem,
            inner_solvers.gradient_descent(0.3, max_steps=30, rtol=0.0),
            hypergradients.unrolled(),
            outer_optimizer=optax.adam(0.1),
        ),
        num_steps=300,
    ),
    "two_loop, preconditioned": Row(preconditioned),
    "two_loop, adaptive": Row(
        lambda problem: solvers.two_loop(
            problem, outer_optimizer=optax.sgd(0.2), adaptive=True
        )
    ),
    "extension: three batches": Row(
        lambda problem: extensions.three_batches(
            problem, inner=0.3, adjoint=0.3, outer=0.1
        ),
        num_steps=400,
    ),
}
# Variants of `two_loop` stay in the default tests once.
every_solver = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.thorough if name.startswith("two_loop,") else []
        )
        for name in ROWS
    ],
)


def points(seed: int, num: int, dtype: Any = jnp.float64) -> Any:
    noise = jax.random.normal(jax.random.key(seed), (num, DIM), dtype)
    return {"points": noise - jnp.mean(noise, axis=0, keepdims=True)}


FULL = bilevel.Batches(points(0, 20), points(1, 20))
SAMPLES = bilevel.Samples(
    inner=samplers.uniform(points(0, 40), batch_size=5),
    outer=samplers.epochs(points(1, 40), batch_size=8),
)


def start(name: str, problem: Problem = PROBLEM) -> tuple[Solver, Any]:
    solver = ROWS[name].make(problem)
    return solver, solver.init(INNER, OUTER, jax.random.key(3))


def equal(a: Any, b: Any, rtol: float = 0.0) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.thinned(3)
def test_reaches_the_solution(name: str):
    """x = TARGET and shift = 1, at which w = x."""
    solver, state = start(name)
    state, info = bilevel.run(solver, state, FULL, num_steps=ROWS[name].num_steps)
    np.testing.assert_allclose(state.outer["a"], TARGET, atol=1e-3)
    np.testing.assert_allclose(state.outer["shift"], 1.0, atol=1e-3)
    assert float(info.gradient_norm[-1]) < 1e-2 * float(info.gradient_norm[0]) + 1e-3
    assert bool(jnp.all(jnp.isfinite(info.value)))


@every_solver
def test_state_is_a_carry_that_keeps_its_key_and_counts_its_steps(name: str):
    solver, state = start(name)
    after, info = jax.jit(lambda s: solver.update(s, SAMPLES))(state)
    same_types = lambda t: jax.tree.map(lambda x: (jnp.shape(x), x.dtype), t)
    assert same_types(after) == same_types(state)
    assert after.step.dtype == jnp.int32
    assert int(after.step) == 1
    equal(after.key, state.key)
    assert jnp.shape(info.value) == jnp.shape(info.gradient_norm) == ()
    last, history = jax.lax.scan(
        lambda s, _: solver.update(s, SAMPLES), state, None, length=3
    )
    assert int(last.step) == 3
    assert history.value.shape == (3,)


@every_solver
@pytest.mark.thinned(2)
def test_jit_equals_eager(name: str):
    solver, state = start(name)
    eager, _ = solver.update(state, SAMPLES)
    jitted, _ = jax.jit(lambda s: solver.update(s, SAMPLES))(state)
    equal(eager, jitted, rtol=1e-9)


@every_solver
def test_resumed_from_its_state_it_draws_the_same_batches(name: str):
    solver, state = start(name)
    whole, _ = bilevel.run(solver, state, SAMPLES, num_steps=6)
    half, _ = bilevel.run(solver, state, SAMPLES, num_steps=2)
    again, _ = bilevel.run(ROWS[name].make(PROBLEM), half, SAMPLES, num_steps=4)
    equal(again, whole)


@every_solver
@pytest.mark.thinned(2)
def test_other_keys_draw_other_batches(name: str):
    solver, state = start(name)
    other = state._replace(key=jax.random.key(4))
    values = [
        bilevel.run(solver, s, SAMPLES, num_steps=3)[1].value for s in (state, other)
    ]
    assert not np.array_equal(*values)


@every_solver
@pytest.mark.thinned(2)
def test_a_batch_of_problems_equals_a_loop(name: str):
    solver, state = start(name)
    outers = [jax.tree.map(lambda x, s=s: x + s, OUTER) for s in (0.0, 0.5)]
    states = [solver.init(INNER, x, state.key) for x in outers]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *states)
    together, _ = jax.jit(jax.vmap(lambda s: solver.update(s, FULL)))(stacked)
    for i, one in enumerate(states):
        alone, _ = jax.jit(lambda s: solver.update(s, FULL))(one)
        equal(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-9)


@every_solver
@pytest.mark.thinned(2)
def test_float32(name: str):
    narrow = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    solver = ROWS[name].make(PROBLEM)
    state = solver.init(narrow(INNER), narrow(OUTER), jax.random.key(0))
    batches = bilevel.Batches(points(0, 8, jnp.float32), points(1, 8, jnp.float32))
    state, info = jax.jit(solver.update)(state, batches)
    for leaf in jax.tree.leaves((state.inner, state.outer)):
        assert leaf.dtype == jnp.float32
        assert bool(jnp.all(jnp.isfinite(leaf)))
    assert bool(jnp.isfinite(info.gradient_norm))


def test_every_solver_has_a_row():
    factories = {name for name in solvers.__all__ if name.islower()}
    assert {name.split(",")[0] for name in ROWS if "extension" not in name} == factories


def test_the_extensions_are_short():
    for file in extensions.FOLDER.glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 60, file.name
