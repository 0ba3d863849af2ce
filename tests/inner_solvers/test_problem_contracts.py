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
    leaf_errors,
    ridge_data,
    uneven,
    uneven_solution,
)

import bilevel
from bilevel import inner_solvers


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
    "fixed_point": (inner_solvers.fixed_point(descend, symmetric=True), False),
    "block_coordinate": (
        inner_solvers.block_coordinate(
            [("kernel", "bias"), ("large",), ("unread", "empty")], 0.4
        ),
        False,
    ),
    "closed_form": (inner_solvers.closed_form(formula), False),
}


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
            # Adam never gets to the large leaf, and must say so.
            assert max(errors.values()) <= 1e-8 or not bool(info.converged), errors
            assert inner["empty"].shape == (0, 2)
            solved = max(errors.values()) <= 1e-8
            assert solved or name == "adam" or (compares and constant)
            steps.append(int(info.num_steps))
    if not compares:
        assert steps[0] == steps[1]
        assert steps[2] == steps[3]


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
