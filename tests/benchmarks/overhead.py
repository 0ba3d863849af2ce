"""What the abstraction costs: W1 through the public API, against JAX by hand.

    taskset -c 0 python tests/benchmarks/overhead.py [--rounds=40] [--inner=descent]

Workload: multinomial logistic regression, 5000 x 784, 10 classes, float32, a penalty
exp(x_j) / 2 for each of the 784 features; the gradient of a validation loss in x by the
implicit rule with exactly 20 CG steps.  The inner point is given (`fixed`), or found by
20 steps of gradient descent (`descent`).  With BILEVEL_DATA set the data are MNIST,
otherwise generated (images of low rank with many zeros).

"hand" is one linearisation, CG in a fori_loop, one vjp; it reports what the library
reports: the value, the inner gradient's norm at the returned point, and the residual of
the adjoint equation, recomputed with one more product.  Results are compared before
times are: to 1e-5 with 5 CG steps; with 20 the difference is printed, since on this
Hessian rounding grows by a factor of ten a step (in float64 too), so that equal
programs end 1e-2 apart.  All programs run interleaved; ratios are medians of ratios
within a round, of wall time and of CPU time (which a busy machine disturbs less).
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel
from bilevel import datasets, hypergradients, inner_solvers, linear_solvers

NUM, DIM, CLASSES = 5000, 784, 10
CG_STEPS, CHECKED_STEPS = 20, 5
INNER_STEPS, STEP_SIZE = 20, 0.1
LOG_PENALTY = -8.0


class Data(NamedTuple):
    inputs: jax.Array  # [n, 784]
    onehot: jax.Array  # [n, 10]


class Result(NamedTuple):
    value: jax.Array
    gradient: jax.Array  # [784]
    inner_residual: jax.Array  # |dG/dw|
    adjoint_residual: jax.Array  # |H u - v| / |v|


def cross_entropy(w: jax.Array, data: Data) -> jax.Array:
    logits = jnp.einsum("nd,kd->nk", data.inputs, w)
    losses = jax.nn.logsumexp(logits, axis=1) - jnp.sum(data.onehot * logits, axis=1)
    return jnp.mean(losses)


def train_loss(w: jax.Array, x: jax.Array, data: Data) -> jax.Array:
    return cross_entropy(w, data) + jnp.sum(jnp.exp(x) * w**2) / 2


def validation_loss(w: jax.Array, x: jax.Array, data: Data) -> jax.Array:
    del x
    return cross_entropy(w, data)


def by_hand(inner: str, cg_steps: int) -> Callable[..., Result]:
    def solve(w: jax.Array, x: jax.Array, train: Data) -> jax.Array:
        if inner == "fixed":
            return w
        gradient = jax.grad(train_loss)
        return jax.lax.fori_loop(
            0, INNER_STEPS, lambda _, w: w - STEP_SIZE * gradient(w, x, train), w
        )

    def evaluate(w: jax.Array, x: jax.Array, train: Data, val: Data) -> Result:
        w = solve(w, x, train)
        value, v = jax.value_and_grad(validation_loss)(w, x, val)
        residual, product = jax.linearize(
            lambda w: jax.grad(train_loss)(w, x, train), w
        )

        def step(_: Any, state: Any) -> Any:
            u, r, p, rho = state
            q = product(p)
            alpha = rho / jnp.sum(p * q)
            u, r = u + alpha * p, r - alpha * q
            new = jnp.sum(r * r)
            return u, r, r + (new / rho) * p, new

        start = (jnp.zeros_like(v), v, v, jnp.sum(v * v))
        u = jax.lax.fori_loop(0, cg_steps, step, start)[0]
        cross = jax.vjp(lambda x: jax.grad(train_loss)(w, x, train), x)[1](u)[0]
        norm = jnp.linalg.norm
        return Result(value, -cross, norm(residual), norm(product(u) - v) / norm(v))

    return evaluate


def inner_solver(inner: str) -> bilevel.inner_solvers.InnerSolver:
    if inner == "fixed":
        return inner_solvers.closed_form(lambda w, x, train: w)
    return inner_solvers.gradient_descent(STEP_SIZE, max_steps=INNER_STEPS, rtol=0)


def rule(cg_steps: int) -> hypergradients.Hypergradient:
    return hypergradients.implicit(linear_solvers.cg(rtol=0, max_steps=cg_steps))


def by_report(inner: str, cg_steps: int, *, certify: bool) -> Callable[..., Result]:
    evaluate = bilevel.value_and_hypergradient(
        bilevel.Problem(train_loss, validation_loss),
        inner_solver(inner),
        rule(cg_steps),
        certify=certify,
    )

    def program(w: jax.Array, x: jax.Array, train: Data, val: Data) -> Any:
        out = evaluate(w, x, bilevel.Batches(train, val))
        info = out.info
        residuals = info.inner.residual_norm, info.pullback.relative_residual
        # The certificate would be dropped from the program if it were not returned.
        return Result(out.value, out.gradient, *residuals), info if certify else ()

    return program


def by_grad(inner: str, cg_steps: int) -> Callable[..., Result]:
    solve = bilevel.argmin(
        train_loss, inner_solver(inner), rule(cg_steps), on_untrustworthy="ignore"
    )

    def value(x: jax.Array, w: jax.Array, train: Data, val: Data) -> Any:
        solution, info = solve(w, x, train)
        return validation_loss(solution, x, val), info.residual_norm

    def program(w: jax.Array, x: jax.Array, train: Data, val: Data) -> Result:
        (loss, norm), gradient = jax.value_and_grad(value, has_aux=True)(
            x, w, train, val
        )
        return Result(loss, gradient, norm, jnp.full((), jnp.nan))

    return program


def programs(inner: str, cg_steps: int) -> dict[str, Callable[..., Any]]:
    gradient = jax.grad(train_loss)
    return {
        "one inner gradient": lambda w, x, train, val: gradient(w, x, train),
        "hand": by_hand(inner, cg_steps),
        "value_and_hypergradient": by_report(inner, cg_steps, certify=False),
        "  with certify=True": by_report(inner, cg_steps, certify=True),
        "grad of argmin": by_grad(inner, cg_steps),
    }


def load() -> tuple[Data, Data]:
    if os.environ.get("BILEVEL_DATA"):
        splits = datasets.load_mnist()
        parts = datasets.split(splits.train, (NUM, NUM), seed=0)
        inputs = np.concatenate([p.inputs.reshape(NUM, DIM) for p in parts])
        labels = np.concatenate([p.labels for p in parts])
    else:
        rng = np.random.default_rng(0)
        basis = rng.standard_normal((40, DIM)) * np.geomspace(1, 0.05, 40)[:, None]
        labels = rng.integers(CLASSES, size=2 * NUM)
        code = rng.standard_normal((CLASSES, 40))[labels]
        code += rng.standard_normal((2 * NUM, 40))
        inputs = np.clip(code @ basis / 6 - 0.1, 0, 1)
    inputs = jnp.asarray(inputs, jnp.float32)
    onehot = jax.nn.one_hot(labels, CLASSES, dtype=jnp.float32)
    return Data(inputs[:NUM], onehot[:NUM]), Data(inputs[NUM:], onehot[NUM:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--inner", choices=("fixed", "descent"), default="fixed")
    options = parser.parse_args()
    train, val = load()
    x = jnp.full(DIM, LOG_PENALTY)
    warm = inner_solvers.gradient_descent(STEP_SIZE, max_steps=300, rtol=0)
    w = jax.jit(bilevel.argmin(train_loss, warm))(jnp.zeros((CLASSES, DIM)), x, train)[
        0
    ]
    arguments = (w, x, train, val)
    short = programs(options.inner, CHECKED_STEPS)
    check({k: jax.jit(f)(*arguments) for k, f in short.items()}, CHECKED_STEPS, 1e-5)
    compiled, compile_times = {}, {}
    for name, program in programs(options.inner, CG_STEPS).items():
        start = time.perf_counter()
        compiled[name] = jax.jit(program).lower(*arguments).compile()
        compile_times[name] = time.perf_counter() - start
    check({k: run(*arguments) for k, run in compiled.items()}, CG_STEPS, 1e-1)

    load_before = os.getloadavg()[0]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in compiled}
    for _ in range(options.rounds):
        for name, run in compiled.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(*arguments))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            times[name].append((1e3 * wall, 1e3 * cpu))
    report({name: np.array(values).T for name, values in times.items()}, compile_times)
    cpus = len(os.sched_getaffinity(0))
    print(
        f"jax {jax.__version__}, {jax.default_backend()}, {cpus} core(s), load "
        f"{load_before:.1f} to {os.getloadavg()[0]:.1f}, inner: {options.inner}, "
        f"data: {'MNIST' if os.environ.get('BILEVEL_DATA') else 'generated'}"
    )


def check(results: dict[str, Any], cg_steps: int, rtol: float) -> None:
    """Raises unless every program returned what the one by hand did."""
    hand = results["hand"]
    largest = 0.0
    for name, result in list(results.items())[2:]:
        result = result if isinstance(result, Result) else result[0]
        for field, got, expected in zip(Result._fields, result, hand, strict=True):
            if name == "grad of argmin" and field == "adjoint_residual":
                continue  # jax.grad has no channel for it
            error = jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected)
            largest = max(largest, float(error))
            if not error <= rtol:
                raise AssertionError(
                    f"{name}: {field} differs by {float(error):.1e} from that by hand, "
                    f"expected at most {rtol:.0e}"
                )
    print(
        f"{cg_steps} CG steps: value {float(hand.value):.5f}, |dG/dw| "
        f"{float(hand.inner_residual):.1e}, adjoint residual "
        f"{float(hand.adjoint_residual):.2f}; largest difference {largest:.1e}"
    )


def report(times: dict[str, np.ndarray], compile_times: dict[str, float]) -> None:
    (unit, cpu_unit), (hand, cpu_hand) = times["one inner gradient"], times["hand"]
    print(
        f"{'':24} {'wall ms':>8} {'min to max':>16} {'/ hand':>7} {'in g':>6} | "
        f"{'cpu ms':>8} {'/ hand':>7} {'in g':>6} | {'compile s':>9}"
    )
    for name, (wall, cpu) in times.items():
        spread = f"{wall.min():.1f} to {wall.max():.1f}"
        print(
            f"{name:24} {np.median(wall):8.2f} {spread:>16} "
            f"{np.median(wall / hand):7.3f} {np.median(wall / unit):6.2f} | "
            f"{np.median(cpu):8.2f} {np.median(cpu / cpu_hand):7.3f} "
            f"{np.median(cpu / cpu_unit):6.2f} | {compile_times[name]:9.2f}"
        )


if __name__ == "__main__":
    main()
