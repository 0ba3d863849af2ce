"""One trained network in every number format: weights rounded, and trained with it.

    python examples/number_formats.py
    python examples/number_formats.py --config=configs/number_formats_mnist.py

A network is trained with real weights. Then, for each format, all weights are rounded,
with one scale for each layer or for each output channel, that of the least squared
error (`--cfg.scale=full_range`: the one that uses all levels); and the network is
trained for some epochs more with rounded weights, straight through within the range,
the scales as they are (quantisation-aware training). The statistics of batch
normalisation are always those of the rounded weights. The table shows test accuracies
in %; a report says what the formats do to the weights themselves.
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import bilevel
from bilevel import number_formats, quantized
from bilevel.experiments import Run, progress
from bilevel.experiments.config import field
from bilevel.number_formats import NumberFormat
from examples import quantized_methods
from examples.images import Data, accuracies, load, spread_of
from examples.quantized import Program, State, moving, num_steps, program_of
from examples.quantized_methods import (
    Model,
    Optimizer,
    Quantization,
    optimizer_of,
    scale_of,
)

FORMATS = (
    *("int4", "int5", "int6", "int7", "int8", "int16"),
    *("posit4_0", "posit4_1", "posit5_0", "posit5_1", "posit6_0"),
    *("posit6_1", "posit8_0", "posit8_1", "posit8_2", "posit16_1"),
    *("posit16_2", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
    *("float8_e3m4", "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = field(
        "digits", help="digits are embedded"
    )
    seed: int = field(0, help="of everything")
    num_seeds: int = field(1, help="networks, from the seed on", minimum=1)
    num_train: int = field(0, help="training images to use; 0: all", minimum=0)
    num_validation: int = field(0, help="held out of training", minimum=0)
    inputs: Literal["unit", "signed"] = field("signed", help="in [0, 1] or [-1, 1]")
    hidden: tuple[int, ...] = field((64, 64), help="widths")
    scale: Literal["least_squares", "max_abs", "full_range"] = field(
        "least_squares",
        help="of the levels: least error, or the largest weight where the format is "
        "finest, or at the end of its range",
    )
    formats: tuple[str, ...] = field(FORMATS, help="by name")
    num_epochs: int = field(20, help="with real weights", minimum=1)
    num_more_epochs: int = field(5, help="with rounded weights", minimum=0)
    learning_rate: float = field(1e-2, help="of Adam, falling as a cosine")
    more_learning_rate: float = field(1e-3, help="the same with rounded weights")
    batch_size: int = field(100, help="examples in a step", minimum=2)


def config_of(own: Config, num_epochs: int, rate: float) -> quantized_methods.Config:
    """The settings of one training."""
    return quantized_methods.Config(
        dataset=own.dataset,
        seed=own.seed,
        num_epochs=num_epochs,
        batch_size=own.batch_size,
        model=Model(hidden=own.hidden),
        quantization=Quantization(method="none"),
        optimizer=Optimizer(learning_rate=rate),
    )


def train(program: Program, states: State, data: Data, num_epochs: int) -> State:
    """All epochs of a training, of all seeds side by side."""
    epoch = jax.jit(jax.vmap(program.epoch, (0, None, None)), donate_argnums=0)
    states = jax.tree.map(jnp.copy, states)
    for number in range(num_epochs):
        states, _ = epoch(states, data.train, jnp.asarray(number))
    return states


def accuracies_of(program: Program, states: State, data: Data) -> np.ndarray:
    """Of the final weights on the test images, `[num_seeds]`."""
    variables = jax.jit(jax.vmap(program.deploy, (0, None)))(states, data.train)
    logits = jax.jit(jax.vmap(program.logits, (0, None)))
    return accuracies(logits, variables, data.test)


def real_weights(config: Config, data: Data) -> tuple[State, np.ndarray]:
    """The networks that all formats start from, and their accuracies."""
    settings = config_of(config, config.num_epochs, config.learning_rate)
    program = program_of(settings, data, None)
    seeds = range(config.seed, config.seed + config.num_seeds)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    states = jax.jit(jax.vmap(program.start))(keys)
    states = train(program, states, data, config.num_epochs)
    return states, accuracies_of(program, states, data)


def compare(
    config: Config, real: State, data: Data, levels: NumberFormat, per_channel: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of weights in a format: rounded, and trained with it."""
    q = quantized.learned_scale(levels, scale_of(config.scale, per_channel))
    settings = config_of(
        config, max(config.num_more_epochs, 1), config.more_learning_rate
    )
    program = program_of(settings, data, q)
    total = settings.num_epochs * num_steps(settings, data)
    optimizer = optimizer_of(settings, total, len(data.train.labels))

    def start(real: State) -> State:
        latent, known = quantized.init(q, real.latent)
        memory = optimizer.init(moving(latent, known))
        return State(latent, known, memory, real.mean, real.key)

    states = jax.jit(jax.vmap(start))(real)
    rounded = accuracies_of(program, states, data)
    if not config.num_more_epochs:
        return rounded, np.full_like(rounded, np.nan)
    trained = train(program, states, data, config.num_more_epochs)
    return rounded, accuracies_of(program, trained, data)


def draw(means: dict[str, np.ndarray], real: float, path: str) -> None:
    """Accuracies against bits: rounded on the left, trained on the right."""
    from matplotlib.figure import Figure

    figure = Figure((9, 4), layout="constrained")
    bits = {name: number_formats.by_name(name).bits for name in means}
    starts = {"integers": "int", "posits": "posit", "floats": ("float", "bfloat")}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, columns in zip(
        panels, ("rounded", "trained"), ((0, 1), (2, 3)), strict=True
    ):
        axes.axhline(100 * real, c="grey", lw=0.8, label="real weights")
        for color, (kind, start) in enumerate(starts.items()):
            rows = [name for name in means if name.startswith(start)]
            for column, marker, scope in zip(
                columns, "ox", ("layer", "channel"), strict=True
            ):
                axes.plot(
                    [bits[name] for name in rows],
                    [100 * means[name][column] for name in rows],
                    marker,
                    c=f"C{color}",
                    fillstyle="none",
                    label=f"{kind}, a scale for each {scope}",
                )
        axes.set(xlabel="bits", title=title, xticks=sorted(set(bits.values())))
    panels[0].set_ylabel("test accuracy, %")
    panels[1].legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=150)


def main(config: Config, run: Run) -> None:
    """Trains, rounds, trains more, and prints the table."""
    began = time.monotonic()
    data = load(config, run)
    run.record_data(**data._asdict(), split_seed=config.seed)
    real, references = real_weights(config, data)
    chosen = [number_formats.by_name(name, saturating=True) for name in config.formats]
    first = [np.asarray(leaf[0]) for leaf in jax.tree.leaves(real.latent)]
    report = number_formats.report(chosen, first)
    report.figure().savefig(run.path("figures/report.png"), dpi=150)
    print(report)

    heads = ("rounded, layer", "channel", "trained, layer", "channel")
    print(f"\n{'format':16}{'bits':>5}" + "".join(f"{head:>16}" for head in heads))
    print(f"{'real weights':16}{32:5}{spread_of(references):>16}")
    found: dict[str, np.ndarray] = {}
    with progress("formats") as show:
        for number, (name, levels) in enumerate(
            zip(config.formats, chosen, strict=True)
        ):
            pairs = [compare(config, real, data, levels, own) for own in (False, True)]
            columns = [pairs[own][kind] for kind in (0, 1) for own in (0, 1)]
            found[name] = np.stack(columns)
            cells = "".join(f"{spread_of(column):>16}" for column in columns)
            print(f"{name:16}{levels.bits:5}{cells}")
            means = found[name].mean(1).tolist()
            run.log(number, format=name, **dict(zip(COLUMNS, means, strict=True)))
            show(number + 1, len(config.formats), {"bits": float(levels.bits)})
    means = {name: columns.mean(1) for name, columns in found.items()}
    draw(means, float(references.mean()), str(run.path("figures/accuracies.png")))
    summary: dict[str, Any] = {"real": references.tolist()}
    for name, columns in found.items():
        summary[name] = dict(zip(COLUMNS, columns.tolist(), strict=True))
    run.finish({**summary, "seconds": time.monotonic() - began})


COLUMNS = ("rounded_layer", "rounded_channel", "trained_layer", "trained_channel")

if __name__ == "__main__":
    bilevel.launch(main, Config())
