"""Another project's use of gradients: every solver and rule, with annotations."""

import json
import sys
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import bilevel
from bilevel import hypergradients, inner_solvers, linear_solvers
from bilevel.hypergradients import Hypergradient
from bilevel.inner_solvers import InnerInfo, InnerSolver
from bilevel.linear_solvers import LinearSolver

INNER_SOLVERS: dict[str, InnerSolver] = {
    "block_coordinate": inner_solvers.block_coordinate([["a"], ["b"]], 0.5),
    "closed_form": inner_solvers.closed_form(lambda w0, x, batch: x),
    "fixed_point": inner_solvers.fixed_point(lambda w, x, batch: 0.5 * (w + x)),
    "gradient_descent": inner_solvers.gradient_descent(optax.adam(0.1), max_steps=50),
    "lbfgs": inner_solvers.lbfgs(memory_size=5),
    "newton": inner_solvers.newton(max_steps=20, rtol=1e-6),
    "step size": inner_solvers.gradient_descent(0.1),
}
LINEAR_SOLVERS: list[LinearSolver] = [
    linear_solvers.cg(rtol=1e-6, max_steps=20),
    linear_solvers.dense(symmetric=True),
    linear_solvers.neumann(0.1, num_terms=20),
    linear_solvers.normal_cg(),
]
RULES: list[Hypergradient] = [
    *[hypergradients.implicit(linear_solver) for linear_solver in LINEAR_SOLVERS],
    hypergradients.nudged(0.02),
    hypergradients.one_step(),
    hypergradients.truncated(3),
    hypergradients.unrolled(mode="reverse", rematerialize="step"),
]


class Data(NamedTuple):
    """What the objectives are evaluated on."""

    target: jax.Array  # [d]


def inner_objective(weights: jax.Array, x: jax.Array, data: Data) -> jax.Array:
    """The distance to the target, with a penalty exp(x)."""
    distance = jnp.sum((weights - data.target) ** 2)
    return distance + jnp.exp(x) * jnp.sum(weights**2)


def outer_objective(weights: jax.Array, x: jax.Array, data: Data) -> jax.Array:
    """The distance to another target."""
    return jnp.sum((weights - data.target) ** 2)


PROBLEM = bilevel.Problem(inner_objective, outer_objective)


def solution(x: jax.Array, data: Data) -> tuple[jax.Array, InnerInfo]:
    """The argmin as a function."""
    solve = bilevel.argmin(inner_objective, inner_solvers.newton(), rtol=1e-2)
    weights, info = solve(jnp.zeros(data.target.shape), x, data)
    steps: jax.Array = info.num_steps
    del steps
    return weights, info


def hypergradient(x: jax.Array, batches: bilevel.Batches) -> tuple[jax.Array, bool]:
    """The gradient of the outer objective, and whether it can be trusted."""
    evaluate = bilevel.value_and_hypergradient(
        PROBLEM, inner_solvers.newton(), hypergradients.implicit(), certify=True
    )
    report = evaluate(jnp.zeros(2), x, batches)
    value: jax.Array = report.value
    residual: jax.Array = report.info.inner.relative_residual
    curvature: jax.Array | None = report.info.pullback.positive_definite
    del value, residual, curvature
    return report.gradient, bool(report.info.trustworthy)


def doubled(value: jax.Array, num_steps: int) -> jax.Array:
    """The loops."""
    value = bilevel.iterate(lambda v: 2.0 * v, value, num_steps=num_steps)
    value, steps = bilevel.iterate_until(
        lambda v: 2.0 * v, value, lambda v: v > 100.0, max_steps=10
    )
    taken: jax.Array = steps
    del taken
    return value


def main() -> None:
    """Prints where the library is, and w*(0) = target / 2 and its derivatives."""
    x, data = jnp.zeros(()), Data(jnp.array([2.0, 4.0]))
    gradient, trustworthy = hypergradient(x, bilevel.Batches(data, data))
    report = {
        "file": bilevel.__file__,
        "version": metadata.version("bilevel"),
        "solution": solution(x, data)[0].tolist(),
        "gradient": float(gradient),
        "trustworthy": trustworthy,
        "has_load_run": callable(bilevel.load_run),
        "doubled": float(doubled(jnp.ones(()), 3)),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
