"""Trains a network whose weights have few levels, by any quantiser.

    python examples/quantized.py --config=configs/quantized_adaste_digits.py
    python examples/quantized.py --cfg.quantization.method=clipped_ste

All layers are quantised. After training the weights are exported, as integers and
scales; the statistics of batch normalisation are those of the exported weights on
training images (for each method alike: some train with other weights than they end
with), and the test images are looked at once, with the weights of the export. An epoch
is one compiled loop; an interrupted run goes on by the same command. Settings were
chosen with `--cfg.num_validation=5000`, which holds images out of training.
`--cfg.num_seeds=3` trains three networks side by side, on the same split of the data.
What to expect: see the configurations.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from bilevel import quantized
from bilevel.experiments import Run, progress
from examples import images
from examples.images import Data, Images, accuracies, load, told_of
from examples.quantized_methods import (
    Config,
    Network,
    average_of,
    optimizer_of,
    quantizer_of,
)

STATISTICS_FROM = 10_000  # training images at most


class State(NamedTuple):
    """All that training changes."""

    latent: Any
    quantizer: Any
    optimizer: Any
    mean: Any
    key: jax.Array


class Program(NamedTuple):
    """What is compiled, for one network.

    Attributes:
        start: `key -> State`.
        epoch: `(state, train) -> (state, metrics)`, means over the epoch.
        deploy: `(state, train) -> variables` of the network, with final weights.
        logits: `(variables, inputs) -> [B, 10]`.
    """

    start: Any
    epoch: Any
    deploy: Any
    logits: Any


def program_of(config: Config, data: Data, own: quantized.Quantizer | None) -> Program:
    """The functions of a training, by one quantiser, or with real weights."""
    network = Network(config.model)
    steps = num_steps(config, data)
    total = config.num_epochs * steps
    optimizer = optimizer_of(config, total, len(data.train.labels))
    average = average_of(config)

    def start(key: jax.Array) -> State:
        first, draws, key = jax.random.split(key, 3)
        variables = network.init(first, data.train.inputs[:2], train=False)
        latent, state = variables["params"], None
        if own is not None:
            latent, state = quantized.init(own, latent, key=draws)
        moved = moving(latent, state)
        mean = average.init(weights_of(moved, state))
        return State(latent, state, optimizer.init(moved), mean, key)

    def weights_of(moved: Any, known: Any) -> Any:
        latent, learned = moved
        if own is None:
            return latent
        return quantized.apply(own, known._replace(learned=learned), latent)

    def loss(weights: Any, rows: Images, key: jax.Array) -> Any:
        logits, _ = network.apply(
            {"params": weights},
            rows.inputs,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        costs = optax.softmax_cross_entropy_with_integer_labels(logits, rows.labels)
        return costs.mean(), (jnp.argmax(logits, -1) == rows.labels).mean()

    def step(state: State, rows: Images, key: jax.Array) -> tuple[State, Any]:
        moved = moving(state.latent, state.quantizer)
        weights, pull = jax.vjp(lambda moved: weights_of(moved, state.quantizer), moved)
        slopes = jax.value_and_grad(loss, has_aux=True)
        (cost, right), gradient = slopes(weights, rows, key)
        gradient, mean = average.update(gradient, state.mean)
        (grads,) = pull(gradient)
        updates, memory = optimizer.update(grads, state.optimizer, moved)
        new: Any = optax.apply_updates(moved, updates)
        latent, learned = new
        known = state.quantizer
        if own is not None:
            known = known._replace(learned=learned)
            latent = quantized.project(own, known, latent)
            known = quantized.advance(known)
        metrics = {"cost": cost, "train_accuracy": right}
        return State(latent, known, memory, mean, state.key), metrics

    def epoch(state: State, train: Images, number: jax.Array) -> tuple[State, Any]:
        key = jax.random.fold_in(state.key, number)
        one = lambda state, rows, index: step(
            state, rows, jax.random.fold_in(key, index)
        )
        return images.epoch(one, state, train, key, config.batch_size)

    def logits(variables: Any, inputs: jax.Array) -> Any:
        return network.apply(variables, inputs, train=False)

    return Program(start, epoch, deployment(config, own), logits)


def num_steps(config: Config, data: Data) -> int:
    """Of an epoch."""
    return len(data.train.labels) // config.batch_size


def deployment(config: Config, own: quantized.Quantizer | None) -> Any:
    """`(state, train) -> variables` of the network, with final weights."""
    # Statistics are those of inference, without drop-out.
    network = Network(dataclasses.replace(config.model, dropout=0.0))

    def deploy(state: State, train: Images) -> Any:
        weights = state.latent
        if own is not None:
            weights = quantized.final(own, state.quantizer, weights)
        if not config.model.normalise:
            return {"params": weights}
        return {"params": weights, "batch_stats": statistics(weights, train)}

    def statistics(weights: Any, train: Images) -> Any:
        """Means over batches."""
        number = max(min(STATISTICS_FROM, len(train.labels)) // config.batch_size, 1)
        size = min(config.batch_size, len(train.labels))
        inputs = train.inputs[: number * size].reshape(number, size, -1)

        def one(index: jax.Array) -> tuple[jax.Array, Any]:
            _, changed = network.apply(
                {"params": weights}, inputs[index], train=True, mutable=["batch_stats"]
            )
            return index + 1, changed["batch_stats"]

        _, found = bilevel.iterate(
            one, jnp.zeros((), jnp.int32), num_steps=number, history=True
        )
        return jax.tree.map(lambda x: jnp.mean(x, 0), found)

    return deploy


def moving(latent: Any, state: quantized.State | None) -> tuple[Any, Any]:
    """What the optimiser moves: latent weights, and scales that are learned."""
    return latent, () if state is None else state.learned


def check_export(
    own: quantized.Quantizer, state: State, weights: Any
) -> quantized.Export:
    """The export of one network, whose weights must be those that are tested."""
    made = quantized.export(own, state.quantizer, state.latent)
    pairs = zip(
        jax.tree.leaves(made.params(state.latent)),
        jax.tree.leaves(weights),
        strict=True,
    )
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise AssertionError("the weights of the export are not those in use")
    return made


def main(config: Config, run: Run) -> None:
    """Trains, exports, and prints the test accuracy."""
    began = time.monotonic()
    data = load(config, run)
    run.record_data(**data._asdict(), split_seed=config.seed)
    own = quantizer_of(config, num_steps(config, data) * config.num_epochs)
    program = program_of(config, data, own)
    if config.num_seeds == 1:
        key, each = jax.random.key(config.seed), lambda function, axes: function
    else:
        seeds = range(config.seed, config.seed + config.num_seeds)
        key, each = jnp.stack([jax.random.key(seed) for seed in seeds]), jax.vmap
    start = jax.jit(each(program.start, 0))(key)
    epoch = jax.jit(each(program.epoch, (0, None, None)), donate_argnums=0)
    deploy = jax.jit(each(program.deploy, (0, None)))
    logits = jax.jit(each(program.logits, (0, None)))
    state, done = run.restore(start) or (start, 0)

    with progress("training") as show:
        for number in range(done, config.num_epochs):
            state, metrics = epoch(state, data.train, jnp.asarray(number))
            values = {name: float(np.mean(value)) for name, value in metrics.items()}
            if not np.isfinite(values["cost"]):
                raise FloatingPointError(
                    f"the cost is {np.ravel(metrics['cost']).tolist()} in epoch "
                    f"{number + 1}; take a smaller learning rate."
                )
            if config.num_validation:
                found = accuracies(logits, deploy(state, data.train), data.validation)
                values["validation_accuracy"] = float(np.mean(found))
            show(number + 1, config.num_epochs, values)
            run.log(number + 1, **values)
            run.save(number + 1, state, force=number + 1 == config.num_epochs)
    variables = deploy(state, data.train)
    one = lambda tree: jax.tree.map(lambda x: x[0] if config.num_seeds > 1 else x, tree)
    if own is not None:
        print(check_export(own, one(state), one(variables["params"])))
    summary = told_of("test_accuracy", accuracies(logits, variables, data.test))
    if config.num_validation:
        found = accuracies(logits, variables, data.validation)
        summary |= told_of("validation_accuracy", found)
    run.finish({**summary, "seconds": time.monotonic() - began})


if __name__ == "__main__":
    bilevel.launch(main, Config())
