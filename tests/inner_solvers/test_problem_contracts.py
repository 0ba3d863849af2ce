"""Problems that are not uniform: every inner solver meets them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_problems import (
    UNEVEN_INNER,
    UNEVEN_OTHER_OUTER,
    UNEVEN_OUTER,
    dense_hypergradient,
    distance,
    leaf_errors,
    readout,
    ridge_data,
    uneven,
    uneven_solution,
)

import bilevel
from bilevel import Batches, Problem, inner_solvers


def descend(w: Any, x: Any, batch: Any) -> Any:
    return jax.tree.map(lambda a, g: a - 0.4 * g, w, jax.grad(uneven)(w, x, batch))


def formula(w0: Any, x: Any, batch: Any) -> Any:
    del w0
    return uneven_solution(x, batch[1])


# Whether the solver compares values of G, which a large constant rounds.
ROWS = {
    "sgd": (inner_solvers.gradient_descent(0.4), False),
    "momentum": (
        inner_solvers.gradient_descent(optax.sgd(0.3, momentum=0.3)),
        False,
    ),
    "adam": (
        inner_solvers.gradient_descent(
            optax.adam(optax.exponential_decay(0.1, 30, 0.5)), max_steps=300
        ),
        False,
    ),
    "lbfgs": (inner_solvers.lbfgs(max_steps=100), True),
    "newton": (inner_solvers.newton(), True),
    "fixed_point": (
        inner_solvers.fixed_point(descend, structure="positive_definite"),
        False,
    ),
    "block_coordinate": (
        inner_solvers.block_coordinate(
            [("kernel", "bias"), ("large",), ("unread", "empty")], 0.4
        ),
        False,
    ),
    "closed_form": (inner_solvers.closed_form(formula), False),
}


# The others stop by one norm over all leaves, of which a large leaf is nearly all.
EVERY_LEAF = ("newton", "closed_form")


@pytest.mark.parametrize("name", ROWS)
def test_leaves_that_differ_and_a_constant_added_to_the_objective(name: str):
    solver, compares = ROWS[name]
    solve = jax.jit(bilevel.argmin(uneven, solver, on_untrustworthy="ignore"))
    steps = []
    for seed, outer in enumerate((UNEVEN_OUTER, UNEVEN_OTHER_OUTER)):
        data = ridge_data(seed)
        expected = uneven_solution(outer, data)
        for constant in (0.0, 1e8):
            inner, info = solve(UNEVEN_INNER, outer, (jnp.array(constant), data))
            errors = leaf_errors(inner, expected)
            assert inner["empty"].shape == (0, 2)
            solved = errors["large"] <= 1e-8 and distance(inner, expected) <= 1e-8
            if name in EVERY_LEAF:
                solved = solved and max(errors.values()) <= 1e-8
            # Adam never gets to the large leaf, and must say so.
            assert solved or not bool(info.converged), errors
            assert solved or name == "adam" or (compares and constant)
            steps.append(int(info.num_steps))
    if not compares:
        assert steps[0] == steps[1]
        assert steps[2] == steps[3]


def of_small_leaves(w: Any, x: Any, batch: Any) -> jax.Array:
    return readout(w["kernel"], x["decay"], None) + jnp.sin(w["bias"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.thorough if name == "sgd" else pytest.mark.slow
        )
        for name in ROWS
    ],
)
def test_a_small_leaf_that_a_large_one_hides_is_not_trusted(name: str):
    """The solver has converged, by its norm over all leaves; the certificate judges
    every leaf for itself."""
    solver = ROWS[name][0]
    if name not in EVERY_LEAF:
        solver = solver._replace(rtol=1e-6)
    evaluate = bilevel.value_and_hypergradient(Problem(uneven, of_small_leaves), solver)
    data = ridge_data(0)
    batch = (jnp.array(0.0), data)
    out = jax.jit(evaluate)(UNEVEN_INNER, UNEVEN_OUTER, Batches(batch))

    @jax.jit
    def exact(x: Any) -> Any:
        inner = uneven_solution(x, data)
        return dense_hypergradient(uneven, of_small_leaves, inner, x, batch)

    expected = exact(UNEVEN_OUTER)
    error = distance(out.gradient, expected)
    assert error <= 1e-4 or not bool(out.info.trustworthy)
    if name == "sgd":
        assert bool(out.info.inner.converged)
        assert error > 1e-4
    if name in EVERY_LEAF:
        assert bool(out.info.trustworthy)


def test_newton_leaves_the_ridge_between_two_minima_at_every_scale():
    def well(w: Any, x: Any, scale: Any) -> jax.Array:
        bowl = jnp.sum((w["z"] - x) ** 2) / 2
        return scale * (w["y"] ** 4 / 4 - x * w["y"] ** 2 / 2 + bowl)

    solve = jax.jit(bilevel.argmin(well, on_untrustworthy="ignore"))
    for start in (0.0, 1e-12):
        for scale in (1e-8, 1.0, 1e8):
            begin = {"y": jnp.array(start), "z": jnp.zeros(2)}
            inner, info = solve(begin, jnp.array(1.5), jnp.array(scale))
            np.testing.assert_allclose(inner["y"] ** 2, 1.5, rtol=1e-8)
            np.testing.assert_allclose(inner["z"], 1.5, rtol=1e-8)
            assert bool(info.converged)
