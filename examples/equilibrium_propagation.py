"""A deep Hopfield network on digits, trained by equilibrium propagation.

The state is the argmin of an energy, relaxed by sweeps over even and odd layers; the
gradient compares two more relaxations, nudged by ±beta (Laborieux et al. 2021).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel import argmin, datasets, hypergradients, inner_solvers, iterate, launch
from bilevel.experiments import Run, config

SIZES, BATCH_SIZE, BETA, NOISE = (64, 128, 10), 32, 0.5, 0.2


def energy(state: Any, params: Any, inputs: jax.Array) -> Any:
    """|s|^2 / 2 - <s, W s_below + b>, summed over layers and examples."""
    layers = zip(state, [inputs, *state[:-1]], params, strict=True)
    return sum(jnp.sum(s * (s / 2 - below @ w - b)) for s, below, (w, b) in layers)


clipped = lambda s, gradient: jnp.clip(s - gradient, 0, 1)
sweeps = inner_solvers.block_coordinate([(1,), (0,)], clipped, max_steps=15, rtol=1e-3)
rule = hypergradients.nudged(BETA, normalise=False)  # the same beta for every example
relax = argmin(energy, sweeps, rule, on_untrustworthy="ignore")
start = lambda inputs: [jnp.zeros((len(inputs), size)) for size in SIZES[1:]]
outputs = lambda params, inputs: relax(start(inputs), params, inputs)[0][-1]


def main(cfg: config.Values, run: Run) -> None:
    """Prints the test accuracy: 98.0 ± 0.6 % over seeds 0 to 2; 9 s of CPU time."""
    train, test = jax.tree.map(jnp.asarray, datasets.load_digits(cfg.seed))
    run.record_data(train=train, test=test, split_seed=cfg.seed)
    key, *keys = jax.random.split(jax.random.key(cfg.seed), len(SIZES))
    init = jax.nn.initializers.variance_scaling(0.2, "fan_in", "uniform")
    shapes = zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    params = [(init(key, (m, n)), jnp.zeros(n)) for key, m, n in shapes]
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, cfg.num_steps))

    def step(carry: Any) -> Any:
        params, state, key = carry
        key, rows, noise = jax.random.split(key, 3)
        x, y = (jax.random.choice(rows, a, (BATCH_SIZE,)) for a in train)
        x, y = x + NOISE * jax.random.normal(noise, x.shape), jax.nn.one_hot(y, 10)
        grads = jax.grad(lambda p: jnp.sum((outputs(p, x) - y) ** 2) / 2)(params)
        updates, state = adam.update(grads, state)
        return optax.apply_updates(params, updates), state, key

    start = (params, adam.init(params), key)
    params, *_ = iterate(step, start, num_steps=cfg.num_steps)
    right = jnp.argmax(outputs(params, test.inputs), axis=-1) == test.labels
    run.save(cfg.num_steps, params, force=True)
    run.finish({"test_accuracy": jnp.mean(right)})


if __name__ == "__main__":
    launch(main, config.of(seed=0, num_steps=1350))
