"""Mistakes that a type checker finds: on the marked lines, and on no others."""

from pathlib import Path

import jax.numpy as jnp
import optax

import bilevel
from bilevel import hypergradients, inner_solvers, linear_solvers, solvers
from bilevel.experiments import Run

PROBLEM = bilevel.Problem(
    inner_objective=lambda w, x, batch: (w - x) ** 2,
    outer_objective=lambda w, x, batch: w**2,
)

# Unknown names.
bilevel.argmax()  # error: reportAttributeAccessIssue
hypergradients.unroll()  # error: reportAttributeAccessIssue

# Unknown, missing and positional arguments.
bilevel.argmin(PROBLEM.inner_objective, tolerance=1e-3)  # error: reportCallIssue
bilevel.Problem(PROBLEM.inner_objective)  # error: reportCallIssue
inner_solvers.newton(10)  # error: reportCallIssue
solvers.two_loop(PROBLEM)  # error: reportCallIssue

# Arguments of a wrong type.
bilevel.argmin(1.0)  # error: reportArgumentType
bilevel.argmin(
    PROBLEM.inner_objective,
    hypergradients.implicit(),  # error: reportArgumentType
)
bilevel.argmin(
    PROBLEM.inner_objective,
    on_untrustworthy="raise",  # error: reportArgumentType
)
bilevel.value_and_hypergradient(PROBLEM.inner_objective)  # error: reportArgumentType
hypergradients.implicit(linear_solvers.cg)  # error: reportArgumentType
hypergradients.unrolled(mode="backward")  # error: reportArgumentType
solvers.two_loop(
    PROBLEM,
    outer_optimizer=optax.sgd(0.1),
    warm_start=None,  # error: reportArgumentType
)

# What comes back.
report = bilevel.value_and_hypergradient(PROBLEM)(jnp.zeros(()), jnp.ones(()))
gradient = report.gradients  # error: reportAttributeAccessIssue
residual = report.info.residual  # error: reportAttributeAccessIssue
state, history = bilevel.run(
    solvers.two_loop(PROBLEM, outer_optimizer=optax.sgd(0.1)),
    None,  # error: reportArgumentType
    bilevel.Batches(),
    num_steps=1.5,  # error: reportArgumentType
)


loaded = bilevel.load_run(3)  # error: reportArgumentType
last = loaded.steps + 1  # error: reportOperatorIssue
loaded.colum("value")  # error: reportAttributeAccessIssue


def main(config: object, run: Run) -> None:
    """A program that uses its folder wrongly."""
    run.log(loss=1.0)  # error: reportCallIssue
    run.save("last", state)  # error: reportArgumentType
    run.finish(1.0)  # error: reportArgumentType
    run.directory = Path()  # error: reportAttributeAccessIssue


bilevel.launch(main, arguments=["--config=small.py"])  # error: reportCallIssue
