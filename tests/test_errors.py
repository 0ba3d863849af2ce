"""Mistakes: each raises, and says what was expected, what came and what to do."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from reference_problems import readout, ridge, ridge_data

import bilevel
from bilevel import (
    hypergradients,
    inner_solvers,
    linear_solvers,
    preconditioners,
    solvers,
)
from bilevel.hypergradients import (
    implicit,
    nudged,
    nudged_by_element,
    one_step,
    stencils,
    truncated,
    unrolled,
)

DATA = ridge_data(0)
START, OUTER = jnp.zeros(3), jnp.array([-0.8, 0.2, -0.3])
DESCENT = inner_solvers.gradient_descent(0.4, max_steps=5)


def gradient(*arguments: Any, **settings: Any) -> Any:
    solve = bilevel.argmin(ridge, *arguments, on_untrustworthy="ignore", **settings)
    return jax.grad(lambda x: jnp.sum(solve(START, x, DATA)[0]))(OUTER)


def evaluate(inner: Any = START, outer: Any = OUTER, **functions: Any) -> Any:
    functions = {"inner_objective": ridge, "outer_objective": readout} | functions
    return bilevel.value_and_hypergradient(bilevel.Problem(**functions))(
        inner, outer, bilevel.Batches(DATA, None)
    )


# Variables and objectives.


@pytest.mark.parametrize(
    "inner", [jnp.zeros(3, int), {"w": [0, 1]}, "w", jnp.ones(3) > 0]
)
def test_inner_variable_that_is_not_floating_point(inner: Any):
    with pytest.raises(ValueError, match=r"inner.* must be a floating-point array"):
        bilevel.argmin(ridge)(inner, OUTER, DATA)
    with pytest.raises(
        ValueError, match=r"Convert it with jnp.asarray\(value, float\)"
    ):
        evaluate(inner)


def test_outer_variable_that_is_not_floating_point():
    with pytest.raises(ValueError, match=r"outer must be .*; got int64"):
        evaluate(outer=jnp.arange(3))
    solver = solvers.two_loop(
        bilevel.Problem(ridge, readout), outer_optimizer=optax.sgd(0.1)
    )
    with pytest.raises(ValueError, match=r"outer\['x'\] must be a floating-point"):
        solver.init(START, {"x": jnp.arange(3)}, jax.random.key(0))


@pytest.mark.parametrize("which", ["inner", "outer"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w, x, b: w * x, r"must return a scalar .*got shapes \[\(3,\)\]"),
        (lambda w, x, b: (jnp.sum(w * x), w), "say so: has_aux=True in argmin"),
        (lambda w, x, b: jnp.argmax(w), "floating-point scalar, got int64"),
        (lambda w, x, b: None, "must return a scalar"),
    ],
)
def test_objectives_that_return_no_scalar(which: str, function: Any, message: str):
    with pytest.raises(ValueError, match=f"the {which} objective .*{message}"):
        evaluate(**{f"{which}_objective": function})
    if which == "inner":
        with pytest.raises(ValueError, match=message):
            bilevel.argmin(function)(START, OUTER, DATA)


def test_has_aux_without_aux():
    with pytest.raises(ValueError, match=r"must return \(scalar, aux\), since has_aux"):
        bilevel.argmin(ridge, has_aux=True)(START, OUTER, DATA)
    with pytest.raises(ValueError, match="the outer objective must return a scalar"):
        bilevel.argmin(ridge, outer_objective=lambda w, x, b: w)(START, OUTER, DATA)


def test_mismatched_trees():
    def shifted(w: Any, x: Any, b: Any) -> Any:
        return {"w": w}

    solver = inner_solvers.fixed_point(shifted)
    with pytest.raises(ValueError, match="must have the tree structure of inner"):
        bilevel.argmin(ridge, solver)(START, OUTER, DATA)
    with pytest.raises(ValueError, match=r"tilt\(...\) must have the"):
        gradient(None, nudged_by_element(lambda w, x, v: (v, v)))


@pytest.mark.parametrize("rtol", [0.0, 1.0, -1e-3])
def test_settings_of_argmin(rtol: float):
    with pytest.raises(ValueError, match=r"rtol must lie in \(0, 1\)"):
        bilevel.argmin(ridge, rtol=rtol)
    with pytest.raises(ValueError, match='must be "warn", "nan" or "ignore", got'):
        bilevel.argmin(ridge, on_untrustworthy="raise")  # type: ignore[arg-type]


# An outer variable that has no way in.


def free_of_outer(w: Any, x: Any, batch: Any) -> jax.Array:
    del x
    return jnp.sum((w - batch.targets[:3]) ** 2)


def test_outer_variable_that_the_inner_solution_does_not_depend_on():
    with pytest.raises(ValueError, match="does not depend on the outer variable"):
        evaluate(inner_objective=free_of_outer)
    # It adds to the objective without moving its minimiser.
    with pytest.raises(ValueError, match="does not depend on the outer variable"):
        evaluate(inner_objective=lambda w, x, b: jnp.sum(w**2) + jnp.sum(x))
    with pytest.raises(ValueError, match="the outer variable has no leaves"):
        evaluate(
            outer=(),
            inner_objective=lambda w, x, b: jnp.sum(w**2),
            outer_objective=lambda w, x, b: jnp.sum(w),
        )


def test_gradient_of_an_argmin_that_does_not_depend_on_the_outer_variable():
    solve = bilevel.argmin(free_of_outer, DESCENT)
    with pytest.raises(ValueError, match="does not depend on the outer variable"):
        jax.jit(jax.grad(lambda x: jnp.sum(solve(START, x, DATA)[0])))(OUTER)


def test_inner_variable_without_leaves():
    with pytest.raises(ValueError, match="inner variable has no leaves"):
        bilevel.argmin(lambda w, x, b: jnp.sum(x))({}, OUTER)


POINTWISE = [
    implicit(),
    one_step(),
    nudged(0.1),
    unrolled(mode="forward"),
    truncated(2),
]


@pytest.mark.parametrize("rule", POINTWISE, ids=lambda r: r.name)
def test_outer_variable_that_enters_only_through_the_initial_point(rule: Any):
    solve = bilevel.argmin(free_of_outer, DESCENT, rule, on_untrustworthy="ignore")
    with pytest.raises(ValueError, match=r"MAML.*use hypergradients.unrolled\(\)"):
        jax.grad(lambda x: jnp.sum(solve(x, x, DATA)[0]))(OUTER)


def test_stopped_initial_points_are_fine():
    solve = bilevel.argmin(ridge, DESCENT, one_step(), on_untrustworthy="ignore")
    got = jax.jit(
        jax.grad(lambda x: jnp.sum(solve(jax.lax.stop_gradient(x), x, DATA)[0]))
    )(OUTER)
    assert bool(jnp.all(got != 0))


# Rules and solvers that do not go together.


@pytest.mark.parametrize(
    "solver", [inner_solvers.newton(), inner_solvers.lbfgs()], ids=["newton", "lbfgs"]
)
def test_reverse_mode_through_loops(solver: Any):
    for rule in (unrolled(), truncated(1), unrolled(rematerialize="segments")):
        with pytest.raises(ValueError, match=r"contain loops .*Use hypergradients.imp"):
            gradient(solver, rule)
    with pytest.raises(ValueError, match="one_step cannot differentiate a step of"):
        gradient(solver, one_step())


def test_truncated_beyond_the_solver():
    with pytest.raises(ValueError, match=r"num_steps=6 exceeds .* max_steps=5"):
        gradient(DESCENT, truncated(6))


def test_full_nudge_needs_a_readout():
    with pytest.raises(ValueError, match=r"pass it as argmin\(..., outer_objective="):
        gradient(DESCENT, nudged(0.1, linearised=False))


def test_closed_forms_and_nudges():
    plain = inner_solvers.closed_form(lambda w0, x, b: w0)
    with pytest.raises(ValueError, match="takes no tilt, so it cannot be nudged"):
        gradient(plain, nudged(0.1))
    tilted = inner_solvers.closed_form(lambda w0, x, b, t: w0, tilted=True)
    with pytest.raises(ValueError, match="closed-form inner solver cannot minimise"):
        gradient(tilted, nudged(0.1, linearised=False), outer_objective=readout)


def test_fixed_points_and_nudges():
    solver = inner_solvers.fixed_point(lambda w, x, b: w)
    with pytest.raises(ValueError, match="to which no nudge can be added"):
        gradient(solver, nudged(0.1))


def test_symmetric_linear_solver_for_a_map_without_symmetry():
    solver = inner_solvers.fixed_point(lambda w, x, b: w)
    for linear in (linear_solvers.cg(), linear_solvers.dense()):
        with pytest.raises(ValueError, match=r"needs a .* matrix.*normal_cg"):
            gradient(solver, implicit(linear))


def test_blocks_that_do_not_cover():
    solver = inner_solvers.block_coordinate([(0,)], 0.1)
    with pytest.raises(ValueError, match=r"expected \[0, 1\], got \[0\]"):
        bilevel.argmin(lambda w, x, b: w[0] ** 2 + w[1] ** 2, solver)((0.0, 1.0), OUTER)


# Hyperparameters of rules.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nudged(0.0), "positive and finite, got 0.0"),
        (lambda: nudged(float("inf")), "positive and finite, got inf"),
        (lambda: nudged(-0.1), r"got -0.1; .* take stencils.one_sided\(beta\)"),
        (lambda: nudged(lambda w, x, v: v), r"nudged_by_element\(tilt\)"),
        (lambda: nudged(stencils.contour(0.1)), "has complex nudges, or a sign"),
        (lambda: nudged(stencils.random_sign(0.1)), "a sign from a key"),
        (
            lambda: nudged_by_element(lambda w, x, v: v, stencils.contour(1.0)),
            "expected a stencil of real points",
        ),
        (lambda: unrolled(mode="backward"), 'mode must be "reverse" or "forward"'),
        (lambda: unrolled(rematerialize="all"), '"none", "step" or "segments", got'),
        (
            lambda: unrolled(mode="forward", rematerialize="step"),
            "forward mode stores no trajectory",
        ),
        (lambda: unrolled(mode="forward", mixed_mode=True), "forward mode stores no"),
        (lambda: truncated(0), "num_steps must be an integer >= 1"),
        (lambda: truncated(1.5), "num_steps must be an integer >= 1"),
        (lambda: truncated(3, rematerialize="all"), "rematerialize must be"),
    ],
)
def test_settings_of_rules(build: Any, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_negative_one_sided_nudges_are_allowed():
    assert nudged(stencils.one_sided(-0.1)).name == "nudged"


def test_settings_of_run():
    solver = solvers.two_loop(
        bilevel.Problem(ridge, readout), outer_optimizer=optax.sgd(0.1)
    )
    state = solver.init(START, OUTER, jax.random.key(0))
    batches = bilevel.Batches(DATA, None)
    with pytest.raises(ValueError, match="num_steps must be >= 0 and chunk_size >= 1"):
        bilevel.run(solver, state, batches, num_steps=-1)
    with pytest.raises(ValueError, match="got 1 and 0"):
        bilevel.run(solver, state, batches, num_steps=1, chunk_size=0)
    assert hypergradients.implicit().name == "implicit"


def _squares(w: Any, x: Any, _: Any) -> Any:
    return jnp.sum((w - x) ** 2)


@pytest.mark.parametrize("through", ["value_and_hypergradient", "grad"])
@pytest.mark.parametrize("apply", [jnp.sum, lambda r: r[:, None], lambda r: {"w": r}])
def test_preconditioner_of_another_shape(apply: Any, through: str):
    given = preconditioners.from_function(lambda w, x, b: apply)
    with pytest.raises(ValueError, match=r"apply\(state, r\) must have the"):
        _hypergradient(through, implicit(), DESCENT, given)


def test_preconditioner_of_what_is_no_hessian():
    solver = inner_solvers.fixed_point(lambda w, x, b: w / 2 + x)
    with pytest.raises(ValueError, match=r"'jacobi' .* is general"):
        _hypergradient("grad", None, solver, preconditioners.jacobi())


def test_preconditioner_that_learns_from_a_solver_that_records_nothing():
    rule, given = implicit(linear_solvers.dense()), preconditioners.limited_memory()
    with pytest.raises(ValueError, match=r"'limited_memory' learns [^.]*\. Use linear"):
        _hypergradient("value_and_hypergradient", rule, None, given)


def test_warm_start_of_another_kind():
    problem = bilevel.Problem(_squares, _squares)
    evaluate = bilevel.value_and_hypergradient(problem)
    with pytest.raises(ValueError, match=r"warm_start of an earlier result.*got tuple"):
        evaluate(jnp.zeros(3), jnp.ones(3), warm_start=(jnp.zeros(3),))


def _hypergradient(
    through: str, rule: Any, solver: Any, preconditioner: Any = None
) -> Any:
    if through == "grad":
        solve = bilevel.argmin(_squares, solver, rule, preconditioner=preconditioner)
        return jax.grad(lambda x: jnp.sum(solve(jnp.zeros(3), x)[0]))(jnp.ones(3))
    problem = bilevel.Problem(_squares, _squares, preconditioner=preconditioner)
    evaluate = bilevel.value_and_hypergradient(problem, solver, rule, certify=False)
    return evaluate(jnp.zeros(3), jnp.ones(3))


@pytest.mark.parametrize("through", ["value_and_hypergradient", "grad"])
@pytest.mark.parametrize("field", ["cotangent", "adjoint"])
def test_rule_of_ones_own_whose_result_has_another_shape(field: str, through: str):
    # A scalar would be added to dF/dx by broadcasting.
    plain = one_step()

    def pullback(*arguments: Any) -> Any:
        result = plain.pullback(*arguments)
        right = result.cotangent if field == "cotangent" else jnp.ones(3)
        wrong = jax.tree.map(jnp.sum, right)
        return result._replace(**{field: wrong})

    rule = plain._replace(pullback=pullback)
    solver = inner_solvers.gradient_descent(0.4, max_steps=50)
    with pytest.raises(AssertionError, match=r"shapes: \(\) != \(3,\)"):
        _hypergradient(through, rule, solver)


def test_solver_of_ones_own_whose_step_returns_another_shape():
    plain = inner_solvers.gradient_descent(0.4, max_steps=3)

    def step(*arguments: Any) -> Any:
        inner, state, info = plain.step(*arguments)
        return jnp.sum(inner), state, info

    with pytest.raises(AssertionError, match=r"shapes: \(\) != \(3,\)"):
        _hypergradient("grad", None, plain._replace(step=step))
