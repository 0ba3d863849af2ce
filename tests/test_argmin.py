"""The argmin as a function, and what is reported beside its gradient."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_problems import (
    Data,
    dense_hypergradient,
    distance,
    readout,
    ridge,
    ridge_data,
    ridge_solution,
)

import bilevel
from bilevel import inner_solvers, solvers
from bilevel.hypergradients import implicit, nudged, one_step, truncated, unrolled
from bilevel.hypergradients.stencils import centred, one_sided, richardson
from bilevel.value_and_hypergradient import WarmStart

DATA = ridge_data(0)
START, OUTER = jnp.zeros(3), jnp.array([-0.8, 0.2, -0.3])
DESCENT = inner_solvers.gradient_descent(0.4, max_steps=80, rtol=0.0)
BATCHES = bilevel.Batches(DATA, None)
PROBLEM = bilevel.Problem(ridge, readout)


def expected_gradient() -> jax.Array:
    return jax.grad(lambda x: readout(ridge_solution(x, DATA), x, None))(OUTER)


# Composition.


@pytest.mark.thorough
def test_nested_argmins_have_the_closed_form_gradient():
    a = jnp.array([[1.0, 0.4], [-0.3, 0.8]])
    b = jnp.array([[0.7, -0.2], [0.1, 1.1]])
    target = jnp.array([0.5, -1.0])

    def third(w: Any, x: Any, batch: None) -> jax.Array:
        del batch
        return jnp.sum((w - a @ x) ** 2) / 2 + jnp.sum(w**2) / 2

    solve_third = bilevel.argmin(third, on_untrustworthy="ignore")

    def second(w: Any, x: Any, batch: None) -> jax.Array:
        lowest, _ = solve_third(jnp.zeros(2), w, batch)
        return jnp.sum(lowest**2) / 2 + jnp.sum((w - b @ x) ** 2) / 2

    solve_second = bilevel.argmin(second, on_untrustworthy="ignore")

    def loss(x: jax.Array) -> jax.Array:
        middle, _ = solve_second(jnp.zeros(2), x)
        return jnp.sum((middle - target) ** 2) / 2

    # lowest = a middle / 2, so the second Hessian is I + a' a / 4.
    matrix = jnp.linalg.solve(jnp.eye(2) + a.T @ a / 4, b)
    x = jnp.array([0.3, 0.9])
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    np.testing.assert_allclose(
        value, jnp.sum((matrix @ x - target) ** 2) / 2, rtol=1e-9
    )
    np.testing.assert_allclose(gradient, matrix.T @ (matrix @ x - target), rtol=1e-8)


@pytest.mark.thorough
def test_gradients_for_the_batch_and_for_what_the_objective_closes_over():
    def losses(w: Any, batch: Any) -> jax.Array:
        return (batch["data"].features @ w - batch["data"].targets) ** 2

    labels, key = jnp.arange(8), jax.random.key(0)

    def objective(w: Any, x: Any, batch: Any) -> jax.Array:
        assert batch["labels"].dtype == labels.dtype
        noise = jax.random.normal(batch["key"], (8,))
        weighted = batch["weights"] * losses(w, batch) * (1 + 0.01 * noise)
        return (jnp.mean(weighted) + jnp.sum(jnp.exp(x) * w**2)) / 2

    solve = bilevel.argmin(objective, on_untrustworthy="ignore")

    @jax.jit
    @jax.grad
    def gradient(weights: jax.Array) -> jax.Array:
        batch = {"data": DATA, "weights": weights, "labels": labels, "key": key}
        return readout(solve(START, OUTER, batch)[0], OUTER, None)

    def direct(weights: jax.Array) -> jax.Array:
        scaled = weights * (1 + 0.01 * jax.random.normal(key, (8,)))
        x, y = DATA
        hessian = x.T @ (scaled[:, None] * x) / 8 + jnp.diag(jnp.exp(OUTER))
        w = jnp.linalg.solve(hessian, x.T @ (scaled * y) / 8)
        return readout(w, OUTER, None)

    weights = jnp.linspace(0.5, 1.5, 8)
    assert distance(gradient(weights), jax.grad(direct)(weights)) <= 1e-8


def test_python_and_numpy_numbers_are_fine():
    solve = bilevel.argmin(lambda w, x, batch: (w - batch * x) ** 2)
    inner, info = solve(0.0, np.array(3.0), 2)
    assert float(inner) == 6.0
    assert bool(info.converged)


def test_readout_is_hoisted_and_may_use_the_batch():
    def gradient(shift: jax.Array) -> jax.Array:
        def function(w: Any, x: Any, batch: Data) -> jax.Array:
            error = batch.features @ w - batch.targets + shift
            return jnp.mean(jnp.cosh(error / 2)) + jnp.sum(x * w)

        solve = bilevel.argmin(
            ridge,
            DESCENT,
            nudged(1e-3, linearised=False),
            on_untrustworthy="ignore",
            outer_objective=function,
        )
        return jax.grad(lambda x: function(solve(START, x, DATA)[0], x, DATA))(OUTER)

    def function(w: Any, x: Any, batch: Data) -> jax.Array:
        error = batch.features @ w - batch.targets + 0.1
        return jnp.mean(jnp.cosh(error / 2)) + jnp.sum(x * w)

    inner = ridge_solution(OUTER, DATA)
    expected = dense_hypergradient(ridge, function, inner, OUTER, DATA)
    # Of second order in the nudge.
    assert distance(jax.jit(gradient)(0.1), expected) <= 1e-5


@pytest.mark.thorough
def test_defaults_have_second_derivatives_and_batches_of_problems():
    solve = bilevel.argmin(ridge, on_untrustworthy="ignore")

    def loss(x: jax.Array, batch: Data) -> jax.Array:
        return readout(solve(START, x, batch)[0], x, None)

    def direct(x: jax.Array, batch: Data) -> jax.Array:
        return readout(ridge_solution(x, batch), x, None)

    data = jax.tree.map(lambda *x: jnp.stack(x), *[ridge_data(s) for s in range(3)])
    outers = jnp.stack([OUTER, OUTER + 0.3, OUTER - 0.3])
    got = jax.jit(jax.vmap(jax.hessian(loss)))(outers, data)
    assert distance(got, jax.vmap(jax.hessian(direct))(outers, data)) <= 1e-6


# What is reported.


@pytest.mark.thorough
def test_aux_is_evaluated_at_the_solution_and_differentiable():
    def objective(w: Any, x: Any, batch: Data) -> Any:
        return ridge(w, x, batch), {"product": w * x, "count": jnp.arange(2)}

    solve = bilevel.argmin(objective, has_aux=True, on_untrustworthy="ignore")

    @jax.jit
    def loss(x: jax.Array) -> jax.Array:
        inner, info = solve(START, x, DATA)
        assert info.aux["count"].shape == (2,)
        return jnp.sum(inner) + jnp.sum(info.aux["product"] ** 2)

    def direct(x: jax.Array) -> jax.Array:
        inner = ridge_solution(x, DATA)
        return jnp.sum(inner) + jnp.sum((inner * x) ** 2)

    np.testing.assert_allclose(loss(OUTER), direct(OUTER), rtol=1e-10)
    assert distance(jax.grad(loss)(OUTER), jax.grad(direct)(OUTER)) <= 1e-8


def test_info_of_argmin():
    inner, info = jax.jit(bilevel.argmin(ridge))(START, OUTER, DATA)
    gradient = jax.grad(ridge)(inner, OUTER, DATA)
    np.testing.assert_allclose(
        info.residual_norm, jnp.linalg.norm(gradient), rtol=1e-3, atol=1e-15
    )
    assert 1 <= int(info.num_steps) <= 10
    assert bool(info.converged)
    assert info.aux is None


@pytest.fixture(scope="module")
def evaluate() -> Any:
    """The default, compiled."""
    return jax.jit(bilevel.value_and_hypergradient(PROBLEM))


@pytest.mark.thorough
def test_everything_is_reported(evaluate: Any):
    out = evaluate(START, OUTER, BATCHES)
    inner = ridge_solution(OUTER, DATA)
    np.testing.assert_allclose(out.value, readout(inner, OUTER, None), rtol=1e-10)
    assert distance(out.inner, inner) <= 1e-10
    assert distance(out.gradient, expected_gradient()) <= 1e-8
    assert out.aux is None
    assert bool(out.info.inner.converged)
    assert bool(out.info.pullback.converged)
    assert bool(out.info.pullback.positive_definite)
    assert float(out.info.pullback.relative_residual) <= 1e-6
    assert float(out.info.pullback.bias) == 0
    assert int(out.info.pullback.num_steps) >= 1
    assert float(out.info.error) <= 1e-5
    assert bool(out.info.trustworthy)
    hessian = jax.hessian(ridge)(inner, OUTER, DATA)
    slope = jax.grad(readout)(inner, OUTER, None)
    assert distance(out.warm_start.rule, jnp.linalg.solve(hessian, slope)) <= 1e-6


@pytest.mark.thorough
def test_adjoint_is_warm_started(evaluate: Any):
    first = evaluate(START, OUTER, BATCHES, WarmStart(jnp.zeros(3)))
    second = evaluate(first.inner, OUTER, BATCHES, first.warm_start)
    assert int(second.info.pullback.num_steps) < int(first.info.pullback.num_steps)
    assert distance(second.gradient, first.gradient) <= 1e-7


def test_outer_aux_and_no_certificate():
    def function(w: Any, x: Any, batch: Any) -> Any:
        return readout(w, x, batch), {"norm": jnp.sum(w**2)}

    problem = bilevel.Problem(ridge, function, outer_has_aux=True)
    out = jax.jit(bilevel.value_and_hypergradient(problem, certify=False))(
        START, OUTER, BATCHES
    )
    np.testing.assert_allclose(out.aux["norm"], jnp.sum(out.inner**2), rtol=1e-12)
    assert out.info.error is None  # unchecked: neither inf nor False
    assert out.info.trustworthy is None
    assert out.info.reason is None


@pytest.mark.parametrize(
    ("rule", "max_steps"),
    [
        (truncated(3), 80),
        (nudged(one_sided(0.3)), 80),
        (implicit(), 4),
    ],
    ids=["truncated", "nudged", "implicit"],
)
@pytest.mark.thorough
def test_estimated_error_is_that_against_the_argmin(rule: Any, max_steps: int):
    solver = DESCENT._replace(max_steps=max_steps, rtol=1e-10)
    evaluate = jax.jit(bilevel.value_and_hypergradient(PROBLEM, solver, rule))
    out = evaluate(START, OUTER, BATCHES)
    inner = ridge_solution(OUTER, DATA)
    direct = jax.grad(readout, argnums=1)(inner, OUTER, None)
    through = expected_gradient() - direct
    scale = jnp.linalg.norm(direct) + jnp.linalg.norm(through)
    error = jnp.linalg.norm(out.gradient - expected_gradient()) / scale
    assert error > 1e-3
    assert not bool(out.info.trustworthy)
    # An estimate; `trustworthy` keeps a margin of 3.
    assert 1 / 3 <= float(out.info.error / error) <= 3


# What happens where a gradient cannot be trusted.

BAD = [
    pytest.param(implicit(), 3, id="implicit"),
    pytest.param(unrolled(), 3, id="unrolled"),
    pytest.param(one_step(), 80, id="one_step"),
    pytest.param(nudged(one_sided(0.5)), 80, id="nudged"),
]


def gradient(rule: Any, max_steps: int, mode: Any) -> jax.Array:
    solver = inner_solvers.gradient_descent(0.4, max_steps=max_steps)
    solve = bilevel.argmin(ridge, solver, rule, on_untrustworthy=mode)

    @jax.jit
    @jax.grad
    def compiled(x: jax.Array) -> jax.Array:
        return readout(solve(START, x, DATA)[0], x, None)

    out = jax.block_until_ready(compiled(OUTER))
    jax.effects_barrier()
    return out


@pytest.mark.parametrize(("rule", "max_steps"), BAD)
@pytest.mark.thinned(3)
def test_untrustworthy_gradients_warn(rule: Any, max_steps: int):
    with pytest.warns(UserWarning, match=rf"untrustworthy gradient .*{rule.name} rule"):
        loud = gradient(rule, max_steps, "warn")
    assert bool(jnp.all(jnp.isfinite(loud)))


@pytest.mark.parametrize(("rule", "max_steps"), BAD[:3])
@pytest.mark.thinned(3)
def test_untrustworthy_gradients_are_nan_on_request(rule: Any, max_steps: int):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing = gradient(rule, max_steps, "nan")
    assert bool(jnp.all(jnp.isnan(missing)))


@pytest.mark.parametrize("rule", [unrolled(), nudged(1e-4)])
def test_trustworthy_gradients_are_silent(rule: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = gradient(rule, 200, "warn")
    assert distance(got, expected_gradient()) <= 1e-4


@pytest.mark.thorough
def test_trustworthy_gradients_are_not_nan():
    assert distance(gradient(implicit(), 200, "nan"), expected_gradient()) <= 1e-8


# Traces.

RULES = {
    "implicit": (implicit(), inner_solvers.newton()),
    "unrolled": (unrolled(), DESCENT),
    "unrolled, forward": (unrolled(mode="forward"), DESCENT),
    "truncated": (truncated(5), DESCENT),
    "one_step": (one_step(), DESCENT),
    "nudged": (nudged(0.01), DESCENT),
    "nudged, full": (nudged(richardson(centred(0.01)), linearised=False), DESCENT),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.thinned(3)
def test_no_rule_retraces_over_100_outer_steps(name: str):
    calls = 0

    def counted(w: Any, x: Any, batch: Data) -> jax.Array:
        nonlocal calls
        calls += 1
        return ridge(w, x, batch)

    rule, solver = RULES[name]
    outer = solvers.two_loop(
        bilevel.Problem(counted, readout), solver, rule, outer_optimizer=optax.sgd(0.1)
    )
    update = jax.jit(outer.update)
    state = outer.init(START, OUTER, jax.random.key(0))
    counts = []
    for step in range(100):
        state, _ = update(state, BATCHES)
        if step in (1, 99):
            counts.append(calls)
    assert counts[0] == counts[1]
    # The objective is traced once to check it and once to hoist what it closes over.
    assert counts[0] <= 4
    assert int(state.step) == 100
    assert bool(jnp.all(jnp.isfinite(state.outer)))


def test_argmin_under_jit_is_traced_once():
    calls = 0

    def counted(w: Any, x: Any, batch: Data) -> jax.Array:
        nonlocal calls
        calls += 1
        return ridge(w, x, batch)

    solve = bilevel.argmin(counted, on_untrustworthy="ignore")
    compiled = jax.jit(jax.grad(lambda x: jnp.sum(solve(START, x, DATA)[0])))
    compiled(OUTER)
    first = calls
    for factor in range(5):
        compiled(OUTER * factor)
    assert calls == first <= 3


@pytest.mark.parametrize(
    ("inner_dtype", "outer_dtype"), [("float32", "float64"), ("float64", "float32")]
)
@pytest.mark.thorough
def test_inner_and_outer_variables_of_different_dtypes(inner_dtype, outer_dtype):
    """The gradient has the dtype of x, the report that of w."""
    problem = bilevel.Problem(
        lambda w, x, _: jnp.sum((w - x) ** 2), lambda w, x, _: jnp.sum(w)
    )
    inner, x = jnp.zeros(2, inner_dtype), jnp.ones((), outer_dtype)
    report = bilevel.value_and_hypergradient(problem)(inner, x)
    assert report.gradient.dtype == outer_dtype
    assert report.info.error.dtype == inner_dtype
    assert bool(report.info.trustworthy)
    np.testing.assert_allclose(report.gradient, 2.0, rtol=1e-6)
    solver = bilevel.argmin(problem.inner_objective, on_untrustworthy="nan")
    gradient = jax.grad(lambda v: jnp.sum(solver(inner, v)[0]))(x)
    assert gradient.dtype == outer_dtype
    np.testing.assert_allclose(gradient, 2.0, rtol=1e-6)
