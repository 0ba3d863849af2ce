"""A network with weights of exactly -1 and +1 on digits, by AdaSTE (Le et al. 2022).

Wells around -1 and 1 grow; nudges to both sides, one of them across the boundary, tell
what a flip is worth.
"""

import jax
import jax.numpy as jnp
import optax

from bilevel import datasets, iterate, launch, number_formats, quantized
from bilevel.experiments import Run, config

SHAPES, RHO = ((64, 256), (256, 256), (256, 10)), 200.0


def network(weights: list, x: jax.Array, seen: jax.Array) -> jax.Array:
    """Logits of x; layers are normalised by their statistics on the inputs `seen`."""
    for w in weights:
        x, seen = jax.nn.relu(x) @ w, jax.nn.relu(seen) @ w
        x, seen = ((a - seen.mean(0)) / (seen.std(0) + 1e-3) for a in (x, seen))
    return x


def main(cfg: config.Values, run: Run) -> None:
    """Prints the test accuracy: 98.1 ± 0.6 % over seeds 0 to 2; 15 s of CPU time."""
    train, test = jax.tree.map(jnp.asarray, datasets.load_digits(cfg.seed))
    run.record_data(train=train, test=test, split_seed=cfg.seed)
    key, *keys = jax.random.split(jax.random.key(cfg.seed), 1 + len(SHAPES))
    x = [jax.random.uniform(k, s, minval=-1) for k, s in zip(keys, SHAPES, strict=True)]
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, cfg.num_steps), b1=0.98)
    grow = 3 * cfg.num_steps // 4
    rho = optax.exponential_decay(0.01, grow, RHO / 0.01, end_value=RHO)
    q = quantized.adaste(number_formats.binary(), rho, alpha=0.01, centred=True)
    x, state = quantized.init(q, x, where=".")

    def step(carry: tuple) -> tuple:
        x, state, memory, key = carry
        key, rows, noise = jax.random.split(key, 3)
        a, b = (jax.random.choice(rows, data, (128,)) for data in train)
        a, b = a + 0.1 * jax.random.normal(noise, a.shape), jax.nn.one_hot(b, 10)
        logits = lambda x: network(quantized.apply(q, state, x), a, a)
        cost = lambda x: optax.softmax_cross_entropy(logits(x), b).mean()
        updates, memory = adam.update(jax.grad(cost)(x), memory)
        return optax.apply_updates(x, updates), quantized.advance(state), memory, key

    start = (x, state, adam.init(x), key)
    x, state, *_ = iterate(step, start, num_steps=cfg.num_steps)
    weights = quantized.final(q, state, x)
    assert all(set(jnp.unique(w).tolist()) == {-1, 1} for w in weights)
    run.save(cfg.num_steps, x, force=True)
    print(quantized.export(q, state, x))
    logits = network(weights, test.inputs, train.inputs)
    run.finish({"test_accuracy": (logits.argmax(axis=-1) == test.labels).mean()})


if __name__ == "__main__":
    launch(main, config.of(seed=0, num_steps=1400))
