"""The rules against closed forms, and biased ones by the order of their bias."""

from collections.abc import Callable
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
from bilevel import (
    hypergradients,
    inner_solvers,
    linear_solvers,
    preconditioners,
)
from bilevel.hypergradients import (
    implicit,
    nudged,
    nudged_by_element,
    one_step,
    truncated,
    unrolled,
)
from bilevel.hypergradients.stencils import (
    Stencil,
    centred,
    of_order,
    one_sided,
    richardson,
)

STEP_SIZE = 0.4
START, OUTER = jnp.zeros(3), jnp.array([-0.8, 0.2, -0.3])
DATA = ridge_data(0)
# The same steps whatever the values, and to rounding.
DESCENT = inner_solvers.gradient_descent(STEP_SIZE, max_steps=80, rtol=0.0)


def hypergradient(
    rule: hypergradients.Hypergradient,
    solver: Any = DESCENT,
    objective: Any = ridge,
    outer_objective: Any = readout,
    preconditioner: Any = None,
) -> jax.Array:
    problem = bilevel.Problem(objective, outer_objective, preconditioner=preconditioner)
    evaluate = bilevel.value_and_hypergradient(problem, solver, rule, certify=False)
    batches = bilevel.Batches(DATA, None)
    return jax.jit(lambda x: evaluate(START, x, batches).gradient)(OUTER)


@pytest.fixture(scope="module")
def closed_form() -> jax.Array:
    """The gradient of the readout of the closed-form ridge solution."""
    return jax.grad(lambda x: readout(ridge_solution(x, DATA), x, None))(OUTER)


# Exact rules.


def descend(w: jax.Array, x: jax.Array, batch: Data) -> jax.Array:
    return w - STEP_SIZE * jax.grad(ridge)(w, x, batch)


def twist(w: jax.Array, x: jax.Array, batch: Data) -> jax.Array:
    """A map with the same fixed point, whose Jacobian is not symmetric."""
    matrix = jnp.array([[0.4, 0.2, 0.0], [-0.2, 0.4, 0.1], [0.0, -0.1, 0.4]])
    return w - matrix @ jax.grad(ridge)(w, x, batch)


def solution(w0: jax.Array, x: jax.Array, batch: Data) -> jax.Array:
    del w0
    return ridge_solution(x, batch)


SOLVERS = {
    "newton": inner_solvers.newton(),
    "lbfgs": inner_solvers.lbfgs(rtol=1e-10),
    "gradient_descent": DESCENT,
    "adam": inner_solvers.gradient_descent(
        optax.adam(optax.exponential_decay(0.1, 50, 0.5)), max_steps=1500, rtol=1e-11
    ),
    "fixed_point": inner_solvers.fixed_point(descend, structure="positive_definite"),
    "fixed_point, twisted": inner_solvers.fixed_point(twist),
    "closed_form": inner_solvers.closed_form(solution),
    "closed_form, differentiable": inner_solvers.closed_form(
        solution, differentiable=True
    ),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.thinned(3)
def test_implicit_is_exact_with_every_solver(name: str, closed_form: jax.Array):
    assert distance(hypergradient(implicit(), SOLVERS[name]), closed_form) <= 1e-8


@pytest.mark.parametrize(
    ("linear", "name"),
    [
        (linear_solvers.dense(), "newton"),
        (linear_solvers.dense(symmetric=False), "fixed_point, twisted"),
        (linear_solvers.normal_cg(rtol=1e-10), "fixed_point, twisted"),
        (linear_solvers.neumann(1.0, 100), "fixed_point"),
        (linear_solvers.cg(rtol=1e-12), "gradient_descent"),
    ],
)
@pytest.mark.thinned(3)
def test_implicit_is_exact_with_every_linear_solver(
    linear: Any, name: str, closed_form: jax.Array
):
    got = hypergradient(implicit(linear), SOLVERS[name])
    assert distance(got, closed_form) <= 1e-8


def test_implicit_with_a_preconditioner(closed_form: jax.Array):
    def diagonal(w: Any, x: jax.Array, batch: Data) -> Callable:
        del w
        entries = jnp.mean(batch.features**2, axis=0) + jnp.exp(x)
        return lambda r: r / entries

    given = preconditioners.from_function(diagonal)
    got = hypergradient(implicit(), preconditioner=given)
    assert distance(got, closed_form) <= 1e-8


@pytest.mark.parametrize(
    "rule",
    [nudged(0.1), nudged(richardson(centred(0.1))), nudged(richardson(centred(0.01)))],
    ids=["centred", "richardson", "richardson, small"],
)
def test_centred_nudges_of_a_quadratic_are_exact(rule: Any, closed_form: jax.Array):
    assert distance(hypergradient(rule), closed_form) <= 1e-8


@pytest.mark.thorough
def test_unrolled_and_its_memory_modes_agree_long_before_convergence():
    short = DESCENT._replace(max_steps=7)

    def program(x: jax.Array) -> jax.Array:
        w = START
        for _ in range(7):
            w = descend(w, x, DATA)
        return readout(w, x, None)

    expected = jax.grad(program)(OUTER)
    for rule in (
        unrolled(),
        unrolled(rematerialize="step"),
        unrolled(rematerialize="segments"),
        unrolled(mixed_mode=True),
        unrolled(mixed_mode=True, rematerialize="segments"),
        unrolled(mode="forward"),
        truncated(7),
    ):
        assert distance(hypergradient(rule, short), expected) <= 1e-13


def test_unrolled_through_a_stateful_optimizer():
    solver = inner_solvers.gradient_descent(
        optax.sgd(0.2, momentum=0.5), max_steps=6, rtol=0.0
    )
    rules = (unrolled(), unrolled(mixed_mode=True), unrolled(mode="forward"))
    plain, *others = [hypergradient(rule, solver) for rule in rules]
    for other in others:
        assert distance(other, plain) <= 1e-13


def test_forward_mode_unrolls_what_reverse_mode_cannot(closed_form: jax.Array):
    newton = inner_solvers.newton(max_steps=8)
    # Its derivative lags a step behind, and so does that of the CG inside.
    got = hypergradient(unrolled(mode="forward"), newton)
    assert distance(got, closed_form) <= 1e-6


@pytest.mark.thorough
def test_implicit_does_not_depend_on_the_map():
    results = [
        hypergradient(implicit(), inner_solvers.fixed_point(mapping))
        for mapping in (descend, twist, lambda w, x, b: ridge_solution(x, b) + 0 * w)
    ]
    assert distance(results[1], results[0]) <= 1e-9
    assert distance(results[2], results[0]) <= 1e-9


# Biased rules, by the slope of their bias.


def slope(sizes: Any, errors: Any) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def curved(w: jax.Array, x: jax.Array, batch: Data) -> jax.Array:
    """Logistic regression with one penalty per feature, and quartic ones."""
    margins = jnp.sign(batch.targets) * (batch.features @ w)
    penalty = jnp.sum(jnp.exp(x) * (w**2 / 2 + w**4 / 4))
    return jnp.mean(jax.nn.softplus(-margins)) + penalty


@pytest.fixture(scope="module")
def state() -> jax.Array:
    """The minimiser of `curved`, by dense Newton steps."""
    return minimise(lambda w: curved(w, OUTER, DATA))


@jax.tree_util.Partial
def _newton_step(function: Any, w: jax.Array) -> jax.Array:
    return w - jnp.linalg.solve(jax.hessian(function)(w), jax.grad(function)(w))


def minimise(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    step = jax.jit(lambda w: _newton_step(function, w))
    w = START
    for _ in range(12):
        w = step(w)
    return w


BETAS = np.array([0.08, 0.04, 0.02, 0.01])


def nudged_errors(
    state: jax.Array, stencil: Stencil, outer_objective: Any = readout, **settings: Any
) -> list[float]:
    """Errors for all of BETAS, by one program.

    The nudge beta of the loss c F is the nudge c beta of F, if it is not normalised.
    """
    expected = dense_hypergradient(curved, outer_objective, state, OUTER, DATA)
    rule = nudged(stencil, normalise=False, **settings)

    @jax.jit
    @jax.vmap
    def scaled(factor: jax.Array) -> jax.Array:
        problem = bilevel.Problem(
            curved, lambda w, x, b: factor * outer_objective(w, x, b)
        )
        evaluate = bilevel.value_and_hypergradient(
            problem, DESCENT._replace(max_steps=120), rule, certify=False
        )
        return evaluate(state, OUTER, bilevel.Batches(DATA, None)).gradient / factor

    return [distance(got, expected) for got in scaled(jnp.array(BETAS))]


@pytest.mark.parametrize("linearised", [True, False], ids=["linear", "full"])
@pytest.mark.parametrize(
    ("stencil", "margin"),
    [
        (one_sided(1.0), 0.15),
        (centred(1.0), 0.15),
        (richardson(one_sided(1.0)), 0.3),
        (richardson(centred(1.0)), 0.5),
        (of_order(1.0, 4), 0.5),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
@pytest.mark.thinned(9)
def test_order_of_the_nudge(
    stencil: Stencil, margin: float, linearised: bool, state: jax.Array
):
    errors = nudged_errors(state, stencil, linearised=linearised)
    assert abs(slope(BETAS, errors) - stencil.order) <= margin


@pytest.mark.thorough
def test_normalised_nudges_are_linear_in_the_loss():
    def scaled(size: float, **settings: Any) -> jax.Array:
        return (
            hypergradient(
                nudged(one_sided(0.3), **settings),
                objective=curved,
                outer_objective=lambda w, x, b: size * readout(w, x, b),
            )
            / size
        )

    for linearised in (True, False):
        one, small = (scaled(s, linearised=linearised) for s in (1.0, 1e-3))
        assert distance(small, one) <= 1e-9
    one, small = (scaled(s, normalise=False) for s in (1.0, 1e-3))
    assert distance(small, one) > 1e-2


def sides(is_centred: bool) -> Stencil:
    return centred(1.0) if is_centred else one_sided(1.0)


@pytest.mark.parametrize("linearised", [True, False])
def test_side_by_side_is_one_after_the_other(linearised: bool):
    stencil = richardson(centred(0.1))
    both = [
        hypergradient(nudged(stencil, linearised=linearised, side_by_side=at_once))
        for at_once in (False, True)
    ]
    np.testing.assert_allclose(*both, rtol=1e-9)


def neumann_inverse(num_terms: int) -> Callable[[jax.Array], jax.Array]:
    def inverse(hessian: jax.Array) -> jax.Array:
        eye = jnp.eye(len(hessian))
        power, total = eye, jnp.zeros_like(eye)
        for _ in range(num_terms):
            total = total + STEP_SIZE * power
            power = power @ (eye - STEP_SIZE * hessian)
        return total

    return inverse


def smallest_curvature() -> float:
    hessian = jax.hessian(ridge)(ridge_solution(OUTER, DATA), OUTER, DATA)
    return float(jnp.linalg.eigvalsh(hessian)[0])


def test_truncated_error_falls_like_the_power_of_the_number_of_steps(
    closed_form: jax.Array,
):
    steps = np.array([12, 18, 24])
    solver = DESCENT._replace(max_steps=120)
    errors = [
        distance(hypergradient(truncated(int(k)), solver), closed_form) for k in steps
    ]
    rate = np.polyfit(steps, np.log(errors), 1)[0]
    # Two eigenvalues, not one, still matter a little at the left end.
    np.testing.assert_allclose(
        rate, np.log(1 - STEP_SIZE * smallest_curvature()), rtol=0.05
    )


def test_one_step_error_falls_like_the_power_of_the_steps_in_its_map(
    closed_form: jax.Array,
):
    def repeated(count: int) -> Callable:
        def mapping(w: jax.Array, x: jax.Array, batch: Data) -> jax.Array:
            return bilevel.iterate(lambda w: descend(w, x, batch), w, num_steps=count)

        return mapping

    counts = np.array([12, 18, 24])
    errors = [
        distance(
            hypergradient(one_step(), inner_solvers.fixed_point(repeated(int(k)))),
            closed_form,
        )
        for k in counts
    ]
    rate = np.polyfit(counts, np.log(errors), 1)[0]
    np.testing.assert_allclose(
        rate, np.log(1 - STEP_SIZE * smallest_curvature()), rtol=0.05
    )


@pytest.mark.thorough
def test_truncated_from_the_minimiser_is_the_neumann_series(state: jax.Array):
    for num_terms in (1, 4):
        solver = DESCENT._replace(max_steps=80 + num_terms)
        unrolled_steps = hypergradient(truncated(num_terms), solver, curved)
        rule = implicit(linear_solvers.neumann(STEP_SIZE, num_terms))
        series = hypergradient(rule, solver, curved)
        expected = dense_hypergradient(
            curved, readout, state, OUTER, DATA, neumann_inverse(num_terms)
        )
        assert distance(unrolled_steps, series) <= 1e-12
        assert distance(series, expected) <= 1e-12


def test_one_step_of_gradient_descent_replaces_the_inverse_by_the_step_size(
    state: jax.Array,
):
    expected = dense_hypergradient(
        curved, readout, state, OUTER, DATA, neumann_inverse(1)
    )
    assert distance(hypergradient(one_step(), objective=curved), expected) <= 1e-12


@pytest.mark.thorough
def test_implicit_against_central_differences(state: jax.Array):
    got = hypergradient(implicit(), inner_solvers.newton(), curved)
    size = 1e-4
    expected = []
    for unit in jnp.eye(3):
        ends = []
        for sign in (1, -1):
            x = OUTER + sign * size * unit
            w = minimise(lambda w, x=x: curved(w, x, DATA))
            ends.append(readout(w, x, None))
        expected.append((ends[0] - ends[1]) / (2 * size))
    # The error of the differences is of the order of size^2.
    assert distance(got, jnp.stack(expected)) <= 1e-7
    dense = dense_hypergradient(curved, readout, state, OUTER, DATA)
    assert distance(got, dense) <= 1e-8


# The value function.


def nudged_state(beta: float) -> jax.Array:
    return minimise(lambda w: curved(w, OUTER, DATA) + beta * readout(w, OUTER, None))


def test_full_nudge_is_the_gradient_of_the_value_function(state: jax.Array):
    beta = 0.1
    moved = nudged_state(beta)

    def stencil(x: jax.Array) -> jax.Array:
        above = curved(moved, x, DATA) + beta * readout(moved, x, None)
        return (above - curved(state, x, DATA)) / beta

    rule = nudged(one_sided(beta), linearised=False, normalise=False)
    solver = DESCENT._replace(max_steps=150)
    assert (
        distance(hypergradient(rule, solver, curved), jax.grad(stencil)(OUTER)) <= 1e-10
    )


def test_value_function_bounds_the_outer_objective(state: jax.Array):
    def value(beta: float) -> jax.Array:
        w = nudged_state(beta)
        return curved(w, OUTER, DATA) + beta * readout(w, OUTER, None)

    free, true = curved(state, OUTER, DATA), readout(state, OUTER, None)
    gaps = []
    for beta in (0.1, 0.05):
        below, above = (value(beta) - free) / beta, (free - value(-beta)) / beta
        assert below < true < above
        gaps.append(above - below)
    np.testing.assert_allclose(gaps[0] / gaps[1], 2, rtol=0.05)


@pytest.mark.thorough
def test_difference_of_nudged_states_is_the_adjoint(state: jax.Array):
    problem = bilevel.Problem(curved, readout)
    out = jax.jit(bilevel.value_and_hypergradient(problem, certify=False))(
        state, OUTER, bilevel.Batches(DATA, None)
    )
    slope_at = jax.grad(readout)(state, OUTER, None)
    beta = 1e-3
    ends = [
        minimise(lambda w, b=b: curved(w, OUTER, DATA) + b * jnp.vdot(slope_at, w))
        for b in (-beta, beta)
    ]
    assert distance((ends[0] - ends[1]) / (2 * beta), out.warm_start.rule) <= 1e-5


# A nudge for every element: quantisers.

LATENT = jnp.array([0.3, -0.3, 0.3, 2.0, 2.0, -1.4])
SLOPES = jnp.array([0.7, -0.7, -0.7, 1.0, -1.0, -0.2])


def latent_gradient(
    solver: Any,
    rule: Any,
    x: jax.Array = LATENT,
    g: jax.Array = SLOPES,
    objective: Any = lambda w, x, batch: jnp.sum((w - x) ** 2) / 2,
) -> jax.Array:
    solve = bilevel.argmin(objective, solver, rule, on_untrustworthy="ignore")
    return jax.jit(jax.grad(lambda x: jnp.sum(g * solve(jnp.zeros_like(x), x)[0])))(x)


def shrink(w0: Any, x: Any, batch: Any, tilt: Any) -> Any:
    return x - tilt


IDENTITY = inner_solvers.closed_form(shrink, tilted=True)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("beta", [1e-3, 0.5, 40.0])
def test_identity_passes_gradients_whatever_the_nudge(beta: float, centred: bool):
    rule = nudged_by_element(lambda w, x, v: beta * v, sides(centred))
    np.testing.assert_allclose(latent_gradient(IDENTITY, rule), SLOPES, rtol=1e-12)


def test_steps_of_nudges_to_both_sides_are_counted():
    objective = lambda w, x, batch: jnp.sum((w - x) ** 2) / 2
    problem = bilevel.Problem(objective, lambda w, x, batch: jnp.sum(SLOPES * w))
    batches = bilevel.Batches(None, None)
    steps, settled = {}, {}
    for is_centred in (False, True):
        rule = nudged_by_element(lambda w, x, v: 0.1 * v, sides(is_centred))
        evaluate = bilevel.value_and_hypergradient(
            problem, IDENTITY, rule, certify=False
        )
        info = jax.jit(evaluate)(jnp.zeros(6), LATENT, batches).info.pullback
        steps[is_centred], settled[is_centred] = (
            int(info.num_steps),
            bool(info.converged),
        )
    assert steps == {False: 1, True: 2}
    assert settled == {False: True, True: True}


def hyperbolic(w: jax.Array, x: jax.Array, batch: None) -> jax.Array:
    """Minimised by w = tanh(1.7 x)."""
    del batch
    mirror = w * jnp.arctanh(w) + jnp.log1p(-(w**2)) / 2
    return jnp.sum(mirror / 1.7 - w * x)


TANH = inner_solvers.closed_form(
    lambda w0, x, batch, tilt: jnp.tanh(1.7 * (x - tilt)), tilted=True
)


@pytest.mark.thorough
def test_tanh_has_the_published_errors():
    x, g = jnp.array([0.3]), jnp.array([0.7])
    exact = float(1.7 * (1 - jnp.tanh(0.51) ** 2) * 0.7)
    forward, centred = [], []
    for beta in (0.1, 0.05, 0.025):
        rules = (
            nudged_by_element(lambda w, x, v, b=beta: b * v, one_sided(1.0)),
            nudged_by_element(lambda w, x, v, b=beta: b * v),
            nudged(beta, normalise=False),
        )
        errors = [
            float(latent_gradient(TANH, rule, x, g, hyperbolic)[0]) - exact
            for rule in rules
        ]
        forward.append(errors[0])
        centred.append(errors[1:])
    # shared/reference/quantized_training.md 2.1.
    np.testing.assert_allclose(forward, [0.050042, 0.025515, 0.012865], atol=1e-6)
    expected = np.array([-1.4840e-3, -3.697e-4, -9.234e-5])
    np.testing.assert_allclose(centred, np.stack([expected] * 2, 1), atol=1e-7)
    # No nudge is the limit.
    limit = nudged_by_element(lambda w, x, v: jnp.zeros_like(v))
    got = latent_gradient(TANH, limit, x, g, hyperbolic)
    np.testing.assert_allclose(got, [exact], rtol=1e-12)


def past_zero(w: jax.Array, x: jax.Array, v: jax.Array) -> jax.Array:
    """The nudge that just crosses zero, where the step heads for it; else none."""
    del w
    crossing = jnp.nextafter(x, jnp.sign(x) * jnp.inf)
    return jnp.where(x * v > 0, crossing, 0)


SIGN = inner_solvers.closed_form(
    lambda w0, x, batch, tilt: jnp.where(x - tilt >= 0, 1.0, -1.0), tilted=True
)


def test_sign_moves_only_what_crosses():
    got = latent_gradient(SIGN, nudged_by_element(past_zero, one_sided(1.0)))
    expected = jnp.where(LATENT * SLOPES > 0, 2 * SLOPES / jnp.abs(LATENT), 0)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert bool(jnp.all(got * SLOPES >= 0))


@pytest.mark.parametrize(
    ("rho", "alpha", "expected"),
    [
        # Elements in the order of LATENT; the first four and the last are published.
        (0.01, 0.01, [1.0568, 1.0568, 0.9901, 0.505, 0.0, 0.7214]),
        (4.0, 0.1, [6.0667, 6.0667, 0.2, 0.94, 0.0, 1.3429]),
        (100.0, 0.01, [6.6667, 6.6667, 0.0, 1.0, 0.0, 1.4286]),
    ],
)
def test_adaste_multipliers(rho: float, alpha: float, expected: list[float]):
    def quantise(w0: Any, x: Any, batch: Any, tilt: Any) -> Any:
        latent = x - tilt
        sign = jnp.where(latent >= 0, 1.0, -1.0)
        return jnp.clip((latent + rho * (1 + alpha) * sign) / (1 + rho), -1, 1)

    solver = inner_solvers.closed_form(quantise, tilted=True)
    got = latent_gradient(solver, nudged_by_element(past_zero, one_sided(1.0))) / SLOPES
    np.testing.assert_allclose(got, expected, atol=1e-4)
