"""The two-loop algorithm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_problems import (
    Data,
    distance,
    readout,
    ridge,
    ridge_data,
    ridge_solution,
)

import bilevel
from bilevel import hypergradients, inner_solvers, linear_solvers, solvers
from bilevel.hypergradients.certificate import REASONS, UNCHECKED

DATA = ridge_data(0)
START, OUTER = jnp.zeros(3), jnp.array([-0.8, 0.2, -0.3])
BATCHES = bilevel.Batches(DATA, None)
PROBLEM = bilevel.Problem(ridge, readout)
SOLVER = solvers.two_loop(PROBLEM, outer_optimizer=optax.sgd(0.2))


@pytest.fixture(scope="module")
def update() -> Any:
    """The default, compiled."""
    return jax.jit(SOLVER.update)


def initial(outer: jax.Array = OUTER) -> Any:
    return SOLVER.init(START, outer, jax.random.key(3))


def oracle(outer: jax.Array, data: Data, num_steps: int) -> jax.Array:
    """Gradient descent on the closed form."""
    gradient = jax.grad(lambda x: readout(ridge_solution(x, data), x, None))
    for _ in range(num_steps):
        outer = outer - 0.2 * gradient(outer)
    return outer


@pytest.mark.thorough
def test_steps_are_those_of_gradient_descent_on_the_closed_form(update: Any):
    state, infos = initial(), []
    for _ in range(4):
        state, info = update(state, BATCHES)
        infos.append(info)
    assert distance(state.outer, oracle(OUTER, DATA, 4)) <= 1e-8
    assert int(state.step) == 4
    assert (
        distance(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(3)))
        == 0
    )
    values = [float(info.value) for info in infos]
    assert values == sorted(values, reverse=True)
    first = infos[0]
    np.testing.assert_allclose(
        first.value, readout(ridge_solution(OUTER, DATA), OUTER, None), rtol=1e-10
    )
    np.testing.assert_allclose(
        first.gradient_norm,
        jnp.linalg.norm(OUTER - oracle(OUTER, DATA, 1)) / 0.2,
        rtol=1e-8,
    )
    assert bool(first.inner_converged)
    assert float(first.inner_relative_residual) <= 1e-10
    assert float(first.adjoint_relative_residual) <= 1e-6
    assert first.error is None  # unchecked by default
    assert first.trustworthy is None


@pytest.mark.thorough
def test_state_is_the_carry_of_a_scan(update: Any):
    last, infos = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: SOLVER.update(s, BATCHES), s, None, 3)
    )(initial())
    state = initial()
    for _ in range(3):
        state, _ = update(state, BATCHES)
    assert distance(last.outer, state.outer) <= 1e-13
    assert distance(last.warm_start, state.warm_start) <= 1e-12
    assert int(last.step) == 3
    assert infos.value.shape == (3,)


@pytest.mark.thorough
def test_jit_equals_eager(update: Any):
    eager, info = SOLVER.update(initial(), BATCHES)
    compiled, expected = update(initial(), BATCHES)
    assert jax.tree.structure(eager) == jax.tree.structure(compiled)
    assert distance(eager.outer, compiled.outer) <= 1e-12
    np.testing.assert_allclose(info.value, expected.value, rtol=1e-12)


@pytest.mark.thorough
def test_vmap_over_problems_equals_loop(update: Any):
    data = [ridge_data(seed) for seed in range(3)]
    outers = [OUTER, OUTER + 0.2, OUTER - 0.2]
    states = jax.tree.map(lambda *x: jnp.stack(x), *[initial(x) for x in outers])
    stacked = bilevel.Batches(jax.tree.map(lambda *x: jnp.stack(x), *data), None)
    states, infos = jax.jit(jax.vmap(SOLVER.update))(states, stacked)
    for lane in range(3):
        expected, info = update(initial(outers[lane]), bilevel.Batches(data[lane]))
        assert distance(states.outer[lane], expected.outer) <= 1e-9
        np.testing.assert_allclose(infos.value[lane], info.value, rtol=1e-9)


def test_warm_start_saves_steps_and_can_be_switched_off(update: Any):
    # Steps of gradient descent count how near the start was.
    descent = inner_solvers.gradient_descent(0.4, max_steps=200, rtol=1e-8)
    steps = {}
    for warm in (True, False):
        solver = solvers.two_loop(
            PROBLEM, descent, outer_optimizer=optax.sgd(0.01), warm_start=warm
        )
        state = solver.init(START, OUTER, jax.random.key(0))
        step = jax.jit(solver.update)
        state, _ = step(state, BATCHES)
        state, info = step(state, BATCHES)
        steps[warm] = int(info.inner_steps)
        if not warm:
            assert not jnp.any(state.inner)
            assert state.warm_start.rule is None
    assert steps[True] < steps[False]


def test_projection_certificate_and_optimizer_state():
    solver = solvers.two_loop(
        PROBLEM,
        inner_solvers.gradient_descent(0.4, max_steps=80),
        hypergradients.unrolled(),
        outer_optimizer=optax.adam(1.0),
        outer_projection=lambda x: jnp.clip(x, -1.0, 0.5),
        certify=True,
    )
    state = solver.init(START, OUTER, jax.random.key(0))
    step = jax.jit(solver.update)
    for _ in range(2):
        state, info = step(state, BATCHES)
    assert bool(jnp.all((state.outer >= -1.0) & (state.outer <= 0.5)))
    assert bool(jnp.any((state.outer == -1.0) | (state.outer == 0.5)))
    assert bool(info.trustworthy)
    assert int(optax.tree.get(state.outer_state, "count")) == 2
    assert state.warm_start.rule is None  # this rule has no adjoint to keep


@pytest.mark.thorough
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.thorough), 3])
def test_every_kth_hypergradient_is_certified(every: int):
    solver = solvers.two_loop(
        PROBLEM, outer_optimizer=optax.sgd(0.2), certify=True if every == 1 else every
    )
    state = solver.init(START, OUTER, jax.random.key(0))
    _, history = bilevel.run(solver, state, BATCHES, num_steps=5)
    looked = np.arange(5) % every == 0
    np.testing.assert_array_equal(history.checked, looked)
    np.testing.assert_array_equal(history.trustworthy, looked)
    np.testing.assert_array_equal(np.isfinite(np.asarray(history.error)), looked)
    np.testing.assert_array_equal(history.reason, np.where(looked, 0, UNCHECKED))
    assert "nobody looked" in REASONS[UNCHECKED]
    with pytest.raises(ValueError, match=r"certify .* got 0"):
        solvers.two_loop(PROBLEM, outer_optimizer=optax.sgd(0.2), certify=0)


def ill_conditioned(w: Any, x: Any, batch: Any) -> Any:
    """w* = x on curvatures from 1 to 1e4, with a quartic term beside it."""
    curvatures = jnp.geomspace(1.0, 1e4, 30)
    return jnp.sum(curvatures * (w - x) ** 2) / 2 + jnp.sum((w - x) ** 4)


def test_tolerances_follow_the_outer_progress():
    """The same end, by fewer steps; at first loose, in the end as tight as ever."""
    target = jnp.sin(jnp.arange(30.0))
    problem = bilevel.Problem(
        ill_conditioned, lambda w, x, b: jnp.sum((w - target) ** 2)
    )
    ends, steps = [], []
    for adaptive in (False, True):
        solver = solvers.two_loop(
            problem, outer_optimizer=optax.sgd(0.3), adaptive=adaptive
        )
        state = solver.init(jnp.zeros(30), jnp.zeros(30), jax.random.key(0))
        state, history = bilevel.run(solver, state, bilevel.Batches(), num_steps=30)
        assert bool(jnp.all(history.inner_converged))
        ends.append(state.outer)
        steps.append(np.asarray(history.adjoint_steps))
    np.testing.assert_allclose(ends[0], target, atol=1e-6)
    np.testing.assert_allclose(ends[1], target, atol=1e-6)
    assert steps[1][:5].sum() < 0.75 * steps[0][:5].sum()
    assert steps[1].sum() < steps[0].sum()


def test_adaptive_tolerances_leave_what_was_chosen_and_what_is_certified():
    adaptive = {"outer_optimizer": optax.sgd(0.2), "adaptive": True}
    chosen = hypergradients.implicit(linear_solvers.cg(rtol=1e-10))
    solver = solvers.two_loop(
        PROBLEM, inner_solvers.newton(rtol=1e-10), chosen, **adaptive
    )
    _, info = jax.jit(solver.update)(
        solver.init(START, OUTER, jax.random.key(0)), BATCHES
    )
    assert float(info.adjoint_relative_residual) <= 1e-9
    assert float(info.inner_relative_residual) <= 1e-9
    solver = solvers.two_loop(PROBLEM, certify=True, **adaptive)
    state = solver.init(START, OUTER, jax.random.key(0))
    _, history = bilevel.run(solver, state, BATCHES, num_steps=4)
    assert bool(jnp.all(history.trustworthy))


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_step_that_is_not_finite_can_be_skipped(adaptive: bool):
    """By the optimiser; neither adjoint nor tolerance keeps the NaN."""

    def outer(w: Any, x: Any, batch: Any) -> Any:
        return jnp.sum((w - 1.0) ** 2) * jnp.where(batch == 3, jnp.nan, 1.0)

    solver = solvers.two_loop(
        bilevel.Problem(lambda w, x, b: jnp.sum((w - x) ** 2), outer),
        outer_optimizer=optax.apply_if_finite(optax.sgd(0.2), 5),
        adaptive=adaptive,
    )
    state = solver.init(jnp.zeros(3), jnp.zeros(3), jax.random.key(0))
    samples = bilevel.Samples(lambda key, draw: None, lambda key, draw: draw)
    state, history = bilevel.run(solver, state, samples, num_steps=40)
    assert np.flatnonzero(np.isnan(history.gradient_norm)).tolist() == [3]
    np.testing.assert_allclose(state.outer, 1.0, atol=1e-6)


def test_a_rule_that_cannot_be_loose_is_refused():
    with pytest.raises(ValueError, match="'nudged' does not follow a tolerance"):
        solvers.two_loop(
            PROBLEM,
            None,
            hypergradients.nudged(0.01),
            outer_optimizer=optax.sgd(0.2),
            adaptive=True,
        )


def test_aux_of_the_outer_objective_is_reported():
    problem = bilevel.Problem(
        ridge, lambda w, x, b: (readout(w, x, b), {"w": w}), outer_has_aux=True
    )
    solver = solvers.two_loop(problem, outer_optimizer=optax.sgd(0.2))
    _, info = jax.jit(solver.update)(initial(), BATCHES)
    assert distance(info.aux["w"], ridge_solution(OUTER, DATA)) <= 1e-10
