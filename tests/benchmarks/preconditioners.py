"""Steps of CG to an error of the hypergradient, by preconditioner.

    BILEVEL_DATA=FOLDER python tests/benchmarks/preconditioners.py

A multi-layer perceptron 784-64-10 with tanh, 500 images, a penalty for each input,
solved to rounding in float64; then a step of 0.05 in every log penalty, up or down, and
a new solution, at which the hypergradient is taken in float32.  Factors, pairs and the
adjoint that a warm start begins with are those of the point before the step.  The
reference is CG in float64 to 1e-11.  With BILEVEL_DATA set the data are MNIST,
otherwise generated.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import overhead

import bilevel
from bilevel import hypergradients, inner_solvers, linear_solvers, preconditioners
from bilevel.value_and_hypergradient import WarmStart

NUM, HIDDEN, PENALTY, STEP = 500, 64, 3e-2, 0.05
STEPS = (1, 3, 5, 10, 20, 40, 70)
NEVER = 10**6  # refreshed at the first point only
GIVEN = inner_solvers.closed_form(lambda w, x, batch: w)
MEMBERS = {
    "none": None,
    "kronecker": preconditioners.kronecker(every=NEVER),
    "limited_memory(20)": preconditioners.limited_memory(20),
    "limited_memory(60)": preconditioners.limited_memory(60),
    "nystrom(20)": preconditioners.nystrom(20, every=NEVER),
    "jacobi": preconditioners.jacobi(every=NEVER),
}


def cross_entropy(w: Any, data: overhead.Data) -> jax.Array:
    hidden = jnp.tanh(data.inputs @ w["first"] + w["bias"][None])
    logits = hidden @ w["second"] + w["offset"][None]
    losses = jax.nn.logsumexp(logits, axis=1) - jnp.sum(data.onehot * logits, axis=1)
    return jnp.mean(losses)


def train_loss(w: Any, x: jax.Array, data: overhead.Data) -> jax.Array:
    penalty = jnp.sum(jnp.exp(x)[:, None] * w["first"] ** 2)
    rest = sum(jnp.sum(w[name] ** 2) for name in ("bias", "second", "offset"))
    return cross_entropy(w, data) + (penalty + PENALTY * rest) / 2


def validation_loss(w: Any, x: jax.Array, data: overhead.Data) -> jax.Array:
    del x
    return cross_entropy(w, data)


def evaluate(preconditioner: Any, linear_solver: Any) -> Callable[..., Any]:
    call = bilevel.value_and_hypergradient(
        bilevel.Problem(train_loss, validation_loss, preconditioner=preconditioner),
        GIVEN,
        hypergradients.implicit(linear_solver),
        certify=False,
    )
    return jax.jit(lambda w, x, batches, warm: call(w, x, batches, warm))


def narrow(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    wide = lambda a: a[:NUM].astype(jnp.float64)
    batches = bilevel.Batches(*(jax.tree.map(wide, d) for d in overhead.load()))
    keys = jax.random.split(jax.random.key(0), 3)
    w = {
        "first": jax.random.normal(keys[0], (overhead.DIM, HIDDEN)) / 28,
        "bias": jnp.zeros(HIDDEN),
        "second": jax.random.normal(keys[1], (HIDDEN, 10)) / 8,
        "offset": jnp.zeros(10),
    }
    x = jnp.full(overhead.DIM, jnp.log(PENALTY))
    moved = x + STEP * jax.random.rademacher(keys[2], x.shape, x.dtype)
    solve = jax.jit(
        bilevel.argmin(
            train_loss, inner_solvers.newton(rtol=1e-10), on_untrustworthy="ignore"
        )
    )
    w, first = solve(w, x, batches.inner)
    after, second = solve(w, moved, batches.inner)
    assert bool(first.converged)
    assert bool(second.converged)
    exact = evaluate(None, linear_solvers.cg(rtol=1e-11))
    before = exact(w, x, batches, None)
    right = exact(after, moved, batches, None).gradient
    w, x, after, moved, batches = narrow((w, x, after, moved, batches))
    print(f"{'steps of CG':26} " + " ".join(f"{k:>8}" for k in STEPS))
    for name, member in MEMBERS.items():
        fitted = evaluate(member, linear_solvers.cg(rtol=1e-3))(w, x, batches, None)
        state = fitted.warm_start.preconditioner
        for is_warm in (False, True):
            adjoint = narrow(before.warm_start.rule) if is_warm else None
            start, errors = WarmStart(adjoint, state), []
            for steps in STEPS:
                capped = linear_solvers.cg(rtol=0.0, max_steps=steps)
                got = evaluate(member, capped)(after, moved, batches, start).gradient
                errors.append(jnp.linalg.norm(got - right) / jnp.linalg.norm(right))
            label = name + (", adjoint warm" if is_warm else "")
            print(f"{label:26} " + " ".join(f"{float(e):8.2g}" for e in errors))
    data = "MNIST" if os.environ.get("BILEVEL_DATA") else "generated"
    count = np.sum([a.size for a in jax.tree.leaves(w)])
    print(f"jax {jax.__version__}, {count} inner variables, data: {data}")


if __name__ == "__main__":
    main()
