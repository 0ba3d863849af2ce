"""Newton-CG against L-BFGS: which one should be the default inner solver?

    BILEVEL_DATA=... taskset -c 0 python tests/benchmarks/default_inner_solver.py

Multinomial logistic regression on 5000 MNIST images (random images without data), one
L2 penalty, from zero to each solver's default tolerance; the error of the hypergradient
of a validation loss is measured against a solve in float64 to a tolerance of 1e-14.
CPU seconds of the compiled call, median of three; compile time apart.
"""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np

import bilevel
from bilevel import datasets, inner_solvers

jax.config.update("jax_enable_x64", True)


def load(seed: int = 0):
    if os.environ.get("BILEVEL_DATA"):
        train = datasets.load_mnist().train
        one, two = datasets.split(train, (5000, 5000), seed)
        return one.inputs, one.labels, two.inputs, two.labels
    rng = np.random.default_rng(seed)
    centres = rng.uniform(size=(10, 784))
    labels = rng.integers(0, 10, size=10_000)
    inputs = np.clip(centres[labels] * 0.3 + rng.uniform(size=(10_000, 784)), 0, 1)
    return inputs[:5000], labels[:5000], inputs[5000:], labels[5000:]


def cross_entropy(w, batch):
    logits = jnp.einsum("nk,dk->nd", batch["inputs"], w)
    picked = jnp.take_along_axis(logits, batch["labels"][:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


PROBLEM = bilevel.Problem(
    lambda w, x, b: cross_entropy(w, b) + jnp.exp(x) / 2 * jnp.sum(w**2),
    lambda w, x, b: cross_entropy(w, b),
)


def main() -> None:
    arrays = load()

    def batches(dtype):
        pairs = [arrays[:2], arrays[2:]]
        return bilevel.Batches(
            *(
                {"inputs": jnp.asarray(a, dtype), "labels": jnp.asarray(b)}
                for a, b in pairs
            )
        )

    print(
        f"{'penalty':>8} {'dtype':>8} {'solver':>8} {'error':>9} {'steps':>6}", end=""
    )
    print(f" {'CPU s':>7} {'compile':>8}")
    for log_penalty in (-3.0, -6.0, -9.0):
        exact = jax.jit(
            bilevel.value_and_hypergradient(
                PROBLEM, inner_solvers.newton(rtol=1e-14), certify=False
            )
        )(jnp.zeros((10, 784)), log_penalty, batches(jnp.float64)).gradient
        for dtype in (jnp.float64, jnp.float32):
            for name in ("newton", "lbfgs"):
                solver = getattr(inner_solvers, name)()
                function = bilevel.value_and_hypergradient(
                    PROBLEM, solver, certify=False
                )
                arguments = (
                    jnp.zeros((10, 784), dtype),
                    jnp.asarray(log_penalty, dtype),
                    batches(dtype),
                )
                start = time.process_time()
                compiled = jax.jit(function).lower(*arguments).compile()
                compile_time = time.process_time() - start
                times = []
                for _ in range(3):
                    start = time.process_time()
                    out = jax.block_until_ready(compiled(*arguments))
                    times.append(time.process_time() - start)
                error = abs(float(out.gradient - exact) / float(exact))
                print(
                    f"{log_penalty:8.0f} {jnp.dtype(dtype).name:>8} {name:>8} "
                    f"{error:9.1e} {int(out.info.inner.num_steps):6d} "
                    f"{np.median(times):7.2f} {compile_time:8.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
