"""What the certificate costs, on inner problems that are solved.

    taskset -c 0 python tests/benchmarks/certificate.py [--rounds=10]

Workload W1 of `overhead.py`: 5000 x 784, 10 classes, float32, a penalty for each of 784
features.  The inner solution is found to 1e-6 beforehand.  Every pair of programs, with
and without a certificate, runs interleaved; ratios are medians within a round, of CPU
time.  That the certificate was computed is asserted: its error is finite, and the
gradient is trusted.  Also the lines of HLO and the seconds of compilation, against the
program by hand of `overhead.py` with the same solver.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import overhead

import bilevel
from bilevel import inner_solvers, preconditioners

PROBLEM = bilevel.Problem(overhead.train_loss, overhead.validation_loss)
GIVEN = inner_solvers.closed_form(lambda w, x, train: w)


def kronecker(w: jax.Array, x: jax.Array, train: overhead.Data) -> Any:
    """H is about (X'X / n) p + penalties for each class, p the mean of p (1 - p)."""
    probabilities = jax.nn.softmax(train.inputs @ w.T)
    share = jnp.mean(probabilities * (1 - probabilities), axis=0)  # [classes]
    gram = train.inputs.T @ train.inputs / len(train.inputs)
    blocks = share[:, None, None] * gram + jnp.diag(jnp.exp(x))
    factors = jnp.linalg.cholesky(blocks)
    return lambda r: jax.vmap(
        lambda factor, row: jax.scipy.linalg.cho_solve((factor, True), row)
    )(factors, r)


def direct(solver: Any, preconditioner: Any, certify: bool) -> Any:
    problem = PROBLEM._replace(preconditioner=preconditioner)
    evaluate = bilevel.value_and_hypergradient(problem, solver, certify=certify)
    return lambda w, x, train, val: evaluate(w, x, bilevel.Batches(train, val))


def through(solver: Any, preconditioner: Any, certify: bool) -> Any:
    solve = bilevel.argmin(
        overhead.train_loss,
        solver,
        on_untrustworthy="nan" if certify else "ignore",
        preconditioner=preconditioner,
    )

    def value(x: Any, w: Any, train: Any, val: Any) -> Any:
        return overhead.validation_loss(solve(w, x, train)[0], x, val)

    return lambda w, x, train, val: jax.grad(value)(x, w, train, val)


def programs() -> dict[str, tuple[Any, Any]]:
    exact = preconditioners.from_function(kronecker)
    rows = {
        "value_and_hypergradient, w given": (direct, GIVEN, None),
        "grad(argmin), w given": (through, GIVEN, None),
        "value_and_hypergradient, default": (direct, None, None),
        "grad(argmin), default": (through, None, None),
        "value_and_hypergradient, Kronecker": (direct, GIVEN, exact),
    }
    return {
        name: (make(solver, rule, False), make(solver, rule, True))
        for name, (make, solver, rule) in rows.items()
    }


def asserted(name: str, result: Any) -> str:
    """What the certificate said; raises where it was not computed."""
    if not isinstance(result, jax.Array):
        error, adjoint = float(result.info.error), result.info.pullback
        assert np.isfinite(error), f"{name}: the certificate was not computed"
        assert bool(result.info.trustworthy), f"{name}: not trusted"
        return f"error {error:.0e}, {int(adjoint.num_steps)} adjoint steps"
    assert bool(jnp.isfinite(result).all()), f"{name}: not trusted"
    return "trusted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    train, val = overhead.load()
    x = jnp.full(overhead.DIM, overhead.LOG_PENALTY)
    start = jnp.zeros((overhead.CLASSES, overhead.DIM))
    w, info = jax.jit(bilevel.argmin(overhead.train_loss))(start, x, train)
    print(
        f"inner solution: {info.num_steps} Newton steps, |g| {info.residual_norm:.0e}"
    )
    arguments = (w, x, train, val)
    gradient = jax.jit(jax.grad(overhead.train_loss)).lower(w, x, train).compile()
    hand = jax.jit(overhead.by_hand("fixed", overhead.CG_STEPS)).lower(*arguments)
    began = time.perf_counter()
    lines = len(hand.compile().as_text().splitlines())
    hand_seconds = time.perf_counter() - began
    print(f"by hand, CG-20: {lines} lines of HLO, {hand_seconds:.1f} s to compile")
    for name, pair in programs().items():
        built, facts = [], []
        for program in pair:
            began = time.perf_counter()
            built.append(jax.jit(program).lower(*arguments).compile())
            seconds = time.perf_counter() - began
            size = len(built[-1].as_text().splitlines()) / lines
            facts.append(f"{size:.1f}x lines, {seconds / hand_seconds:.1f}x compile")
        said = asserted(name, built[1](*arguments))
        times = np.array(
            [
                [
                    cpu_seconds(built[0], arguments),
                    cpu_seconds(built[1], arguments),
                    cpu_seconds(gradient, (w, x, train)),
                ]
                for _ in range(rounds)
            ]
        )
        ratio = times[:, 1] / times[:, 0]
        units = np.median(times[:, :2] / times[:, 2:], axis=0)
        print(
            f"{name:36} with / without {np.median(ratio):.2f} "
            f"({ratio.min():.2f} to {ratio.max():.2f}); {units[0]:.0f} and "
            f"{units[1]:.0f} g; {said}; without: {facts[0]}; with: {facts[1]}"
        )


def cpu_seconds(program: Any, arguments: Any) -> float:
    start = time.process_time()
    jax.block_until_ready(program(*arguments))
    return time.process_time() - start


if __name__ == "__main__":
    main()
