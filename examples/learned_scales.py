"""Scales of few-bit weights: calibrated, learned with the weights, or bilevel.

    python examples/learned_scales.py
    python examples/learned_scales.py --config=configs/learned_scales_mnist.py

A network is trained with real weights, then for as many epochs again with weights of 2,
3 and 4 bits, with one scale for each layer (`--cfg.per_channel=true`: for each output
channel), which comes from

    max_abs        the largest weight, then stays
    least_squares  the least squared error of rounding, then stays
    lsq            the training loss, along with the weights (Esser et al. 2020)
    bilevel        the validation loss, by the hypergradient of the implicit rule: the
                   scale is the outer, the latent weights are the inner variable

All but bilevel train on the validation images, too: what a researcher without it would
do (`--cfg.join=false`: they do not). bilevel takes a step of the scales after every
`outer_every` steps of the weights, where they stand, with a few steps of damped CG on a
batch. Test accuracies in %, with the statistics of batch normalisation of the final
weights.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from bilevel import (
    hypergradients,
    inner_solvers,
    linear_solvers,
    number_formats,
    quantized,
)
from bilevel.experiments import Run, progress
from bilevel.experiments.config import field
from examples import images, quantized_methods
from examples.images import Data, Images, accuracies, load, spread_of, told_of
from examples.quantized import State, deployment, program_of
from examples.quantized_methods import (
    Model,
    Network,
    Optimizer,
    Quantization,
    scale_of,
)

METHODS = ("max_abs", "least_squares", "lsq", "bilevel")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = field(
        "digits", help="digits are embedded"
    )
    seed: int = field(0, help="of the split of the data")
    num_seeds: int = field(1, help="networks, from the seed on", minimum=1)
    num_train: int = field(1000, help="training images to use", minimum=1)
    num_validation: int = field(300, help="for the scales of bilevel", minimum=1)
    inputs: Literal["unit", "signed"] = field("signed", help="in [0, 1] or [-1, 1]")
    hidden: tuple[int, ...] = field((32, 32), help="widths")
    bits: tuple[int, ...] = field((2, 3, 4), help="of the weights")
    methods: tuple[str, ...] = field(METHODS, help="by name")
    per_channel: bool = field(False, help="a scale for each output channel")
    num_epochs: int = field(20, help="with real, and with rounded weights", minimum=1)
    batch_size: int = field(50, help="examples in a step", minimum=2)
    learning_rate: float = field(1e-2, help="of Adam, falling as a cosine")
    more_learning_rate: float = field(1e-3, help="the same with rounded weights")
    scale_learning_rate: float = field(1e-3, help="of LSQ's scales, relative")
    outer_learning_rate: float = field(1e-2, help="of log scales, bilevel")
    outer_every: int = field(5, help="steps of weights for one of scales", minimum=1)
    outer_batch: int = field(250, help="validation images in a step", minimum=1)
    decay: float = field(1e-4, help="L2 of latent weights", minimum=0.0)
    join: bool = field(True, help="train all but bilevel on validation images, too")
    cg_steps: int = field(5, help="of the hypergradient", minimum=1)
    damping: float = field(1e-2, help="of CG", minimum=0.0)


class Carry(NamedTuple):
    """All that training changes."""

    latent: Any
    learned: Any
    inner: Any  # memory of the optimiser
    outer: Any  # that of the scales, bilevel


class Task(NamedTuple):
    """One way to come to scales."""

    quantizer: quantized.Quantizer
    learns: Literal["nothing", "with the weights", "on validation data"]


def task_of(config: Config, method: str, bits: int) -> Task:
    """The quantiser, and on what its scale learns."""
    levels = number_formats.symmetric(bits)
    if method == "lsq":
        own = quantized.lsq(
            levels,
            per_channel=config.per_channel,
            scale=quantized.scales.published_for_lsq,
        )
        return Task(own, "with the weights")
    # bilevel begins with the least squared error.
    name = "max_abs" if method == "max_abs" else "least_squares"
    scale = scale_of(name, config.per_channel)
    learns = "on validation data" if method == "bilevel" else "nothing"
    return Task(quantized.learned_scale(levels, scale), learns)


Loss = Callable[[Any, Any, Images], jax.Array]
"""`(latent, learned, batch) -> []`: of latent weights, and of what is learned."""


def losses_of(config: Config, q: quantized.Quantizer, known: Any) -> tuple[Loss, Loss]:
    """Of weights in the format, without and with the penalty of latent weights."""
    network = Network(Model(hidden=config.hidden))

    def loss(latent: Any, learned: Any, batch: Images) -> jax.Array:
        weights = quantized.apply(q, known._replace(learned=learned), latent)
        logits, _ = network.apply(
            {"params": weights}, batch.inputs, train=True, mutable=["batch_stats"]
        )
        costs = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return costs.mean()

    def penalised(latent: Any, learned: Any, batch: Images) -> jax.Array:
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(latent)]
        return loss(latent, learned, batch) + config.decay / 2 * sum(squares)

    return loss, penalised


def outer_step_of(
    config: Config, data: Data, losses: tuple[Loss, Loss], outer: Any
) -> Callable[[Carry, jax.Array], Carry]:
    """`(carry, key) -> carry`: one step of the scales on validation images."""
    loss, penalised = losses
    hypergradient = bilevel.value_and_hypergradient(
        bilevel.Problem(inner_objective=penalised, outer_objective=loss),
        # The weights are taken for a solution where they stand.
        inner_solvers.closed_form(lambda latent, learned, batch: latent),
        hypergradients.implicit(
            linear_solvers.cg(max_steps=config.cg_steps, damping=config.damping)
        ),
        certify=False,
    )

    def drawn(part: Images, key: jax.Array, size: int) -> Images:
        number = len(part.labels)
        rows = jax.random.choice(key, number, (min(size, number),), replace=False)
        return jax.tree.map(lambda x: x[rows], part)

    def outer_step(carry: Carry, key: jax.Array) -> Carry:
        keys = jax.random.split(key)
        batches = bilevel.Batches(
            drawn(data.train, keys[0], 4 * config.batch_size),
            drawn(data.validation, keys[1], config.outer_batch),
        )
        found = hypergradient(carry.latent, carry.learned, batches)
        updates, memory = outer.update(found.gradient, carry.outer)
        learned: Any = optax.apply_updates(carry.learned, updates)
        return carry._replace(learned=learned, outer=memory)

    return outer_step


def train(
    config: Config, task: Task, start: State, data: Data, num_epochs: int
) -> State:
    """All epochs with rounded weights."""
    known, rows = start.quantizer, data.train
    if config.join and task.learns != "on validation data":
        rows = jax.tree.map(lambda *x: jnp.concatenate(x), data.train, data.validation)
    num_steps = num_epochs * (len(rows.labels) // config.batch_size)
    losses = losses_of(config, task.quantizer, known)
    slopes_of = jax.grad(losses[1], (0, 1))
    rate = config.more_learning_rate
    inner = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    # LSQ's scales are as large as they are: their rate is relative to it.
    fast = config.scale_learning_rate if task.learns == "with the weights" else 0.0
    outer = optax.adam(config.outer_learning_rate, b1=0.5)
    outer_step = outer_step_of(config, data, losses, outer)

    def step(
        carry: Carry, batch: Images, index: jax.Array, key: jax.Array
    ) -> tuple[Carry, None]:
        slopes = slopes_of(carry.latent, carry.learned, batch)
        updates, memory = inner.update(slopes, carry.inner)
        moved, learnt = cast(tuple[Any, Any], updates)
        latent = optax.apply_updates(carry.latent, moved)
        learned = jax.tree.map(
            lambda s, u: s + fast / rate * s * u, carry.learned, learnt
        )
        carry = Carry(latent, learned, memory, carry.outer)
        if task.learns != "on validation data":
            return carry, None
        is_due = index % config.outer_every == 0
        own = jax.random.fold_in(key, index)
        return jax.lax.cond(is_due, outer_step, lambda c, _: c, carry, own), None

    @jax.jit
    def epoch(carry: Carry, key: jax.Array) -> Carry:
        one = lambda carry, batch, index: step(carry, batch, index, key)
        return images.epoch(one, carry, rows, key, config.batch_size)[0]

    pair = (start.latent, known.learned)
    carry = Carry(*pair, inner.init(pair), outer.init(known.learned))
    for number in range(num_epochs):
        carry = epoch(carry, jax.random.fold_in(start.key, number))
    known = known._replace(learned=carry.learned)
    return start._replace(latent=carry.latent, quantizer=known)


def real_weights(config: Config, data: Data, seed: int) -> tuple[Any, float]:
    """The state of a network that was trained without rounding, and its accuracy."""
    settings = settings_of(config)
    program = program_of(settings, data, None)
    state = jax.jit(program.start)(jax.random.key(seed))
    epoch = jax.jit(program.epoch)
    for number in range(config.num_epochs):
        state, _ = epoch(state, data.train, jnp.asarray(number))
    variables = jax.jit(program.deploy)(state, data.train)
    right = accuracies(jax.jit(program.logits), variables, data.test)
    return state, float(right[0])


def settings_of(config: Config) -> quantized_methods.Config:
    """Those of the training with real weights."""
    return quantized_methods.Config(
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        model=Model(hidden=config.hidden),
        quantization=Quantization(method="none"),
        optimizer=Optimizer(learning_rate=config.learning_rate),
    )


def main(config: Config, run: Run) -> None:
    """Trains by each method, for each number of bits, and prints the table."""
    began = time.monotonic()
    unknown = set(config.methods) - set(METHODS)
    if unknown:
        raise ValueError(f"methods: expected some of {METHODS}, got {sorted(unknown)}.")
    data = load(config, run)
    run.record_data(**data._asdict(), split_seed=config.seed)
    found: dict[str, list[float]] = {}
    logits = jax.jit(
        lambda v, x: Network(Model(hidden=config.hidden)).apply(v, x, train=False)
    )
    seeds = range(config.seed, config.seed + config.num_seeds)
    with progress("seeds") as show:
        for number, seed in enumerate(seeds):
            real, right = real_weights(config, data, seed)
            found.setdefault("real", []).append(right)
            for bits in config.bits:
                for method in config.methods:
                    task = task_of(config, method, bits)
                    begin = lambda tree, q=task.quantizer: quantized.init(q, tree)
                    latent, known = jax.jit(begin)(real.latent)
                    start = State(latent, known, None, None, real.key)
                    state = train(config, task, start, data, config.num_epochs)
                    deploy = jax.jit(deployment(settings_of(config), task.quantizer))
                    variables = deploy(state, data.train)
                    right = float(accuracies(logits, variables, data.test)[0])
                    name = f"int{bits}_{method}"
                    found.setdefault(name, []).append(right)
                    run.log(number, network=name, seed=seed, test_accuracy=right)
            show(number + 1, config.num_seeds, {"real": found["real"][-1]})
    print(f"{'weights':24}{'test accuracy, %':>18}")
    summary: dict[str, float] = {}
    for name, values in found.items():
        summary |= told_of(name, np.array(values))
        print(f"{name:24}{spread_of(np.array(values)):>18}")
    run.finish({**summary, "seconds": time.monotonic() - began})


if __name__ == "__main__":
    bilevel.launch(main, Config())
