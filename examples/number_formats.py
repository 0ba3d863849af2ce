"""One trained network in every number format: weights rounded, and trained with it.

    python examples/number_formats.py
    python examples/number_formats.py --config=configs/number_formats_mnist.py

A network is trained with real weights. Then, for each format, all weights are rounded,
with one scale for each layer or for each output channel, that of the least squared
error; and the network is trained for some epochs more with rounded weights, straight
through within the range, the scales as they are (quantisation-aware training). The
statistics of batch normalisation are always those of the rounded weights. The table
shows test accuracies in %; a report says what the formats do to the weights themselves.
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
from bilevel.quantized import scales
from examples import quantized_methods
from examples.images import Data, accuracies, load
from examples.quantized import Program, State, moving, num_steps, program_of
from examples.quantized_methods import Model, Optimizer, Quantization, optimizer_of

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
    num_train: int = field(0, help="training images to use; 0: all", minimum=0)
    num_validation: int = field(0, help="held out of training", minimum=0)
    inputs: Literal["unit", "signed"] = field("signed", help="in [0, 1] or [-1, 1]")
    hidden: tuple[int, ...] = field((64, 64), help="widths")
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


def train(program: Program, state: State, data: Data, num_epochs: int) -> State:
    """All epochs of a training."""
    epoch = jax.jit(program.epoch, donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)
    for number in range(num_epochs):
        state, _ = epoch(state, data.train, jnp.asarray(number))
    return state


def accuracy_of(program: Program, state: State, data: Data) -> float:
    """Of the final weights on the test images, in %."""
    variables = jax.jit(program.deploy)(state, data.train)
    return 100 * float(accuracies(jax.jit(program.logits), variables, data.test)[0])


def compare(
    config: Config, real: State, data: Data, name: str, per_channel: bool
) -> tuple[float, float]:
    """Accuracies of weights in a format: rounded, and trained with it."""
    levels = number_formats.by_name(name, saturating=True)
    fit = scales.least_squares
    scale = scales.of_channels(fit) if per_channel else fit
    q = quantized.learned_scale(levels, scale)
    settings = config_of(
        config, max(config.num_more_epochs, 1), config.more_learning_rate
    )
    program = program_of(settings, data, q)
    latent, known = jax.jit(lambda tree: quantized.init(q, tree))(real.latent)
    total = settings.num_epochs * num_steps(settings, data)
    optimizer = optimizer_of(settings, total, len(data.train.labels))
    memory = optimizer.init(moving(latent, known))
    state = State(latent, known, memory, real.mean, real.key)
    rounded = accuracy_of(program, state, data)
    if not config.num_more_epochs:
        return rounded, float("nan")
    trained = train(program, state, data, config.num_more_epochs)
    return rounded, accuracy_of(program, trained, data)


def draw(found: dict[str, list[float]], real: float, path: str) -> None:
    """Accuracies against bits: rounded on the left, trained on the right."""
    from matplotlib.figure import Figure

    figure = Figure((9, 4), layout="constrained")
    bits = {name: number_formats.by_name(name).bits for name in found}
    starts = {"integers": "int", "posits": "posit", "floats": ("float", "bfloat")}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, columns in zip(
        panels, ("rounded", "trained"), ((0, 1), (2, 3)), strict=True
    ):
        axes.axhline(real, c="grey", lw=0.8, label="real weights")
        for color, (kind, start) in enumerate(starts.items()):
            rows = [name for name in found if name.startswith(start)]
            for column, marker, scope in zip(
                columns, "ox", ("layer", "channel"), strict=True
            ):
                axes.plot(
                    [bits[name] for name in rows],
                    [found[name][column] for name in rows],
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
    settings = config_of(config, config.num_epochs, config.learning_rate)
    program = program_of(settings, data, None)
    start = jax.jit(program.start)(jax.random.key(config.seed))
    real = train(program, start, data, config.num_epochs)
    reference = accuracy_of(program, real, data)
    print(f"real weights: {reference:.2f} %")
    weights = jax.tree.leaves(real.latent)
    chosen = [number_formats.by_name(name, saturating=True) for name in config.formats]
    report = number_formats.report(chosen, weights)
    print(report)
    report.figure().savefig(run.path("figures/report.png"), dpi=150)

    heads = ("rounded, layer", "channel", "trained, layer", "channel")
    print(f"\n{'format':16}{'bits':>5}" + "".join(f"{head:>16}" for head in heads))
    found: dict[str, list[float]] = {}
    with progress("formats") as show:
        for number, name in enumerate(config.formats):
            pairs = [compare(config, real, data, name, own) for own in (False, True)]
            row = [float(x) for x in np.transpose(pairs).ravel()]
            found[name] = row
            bits = number_formats.by_name(name).bits
            print(f"{name:16}{bits:5}" + "".join(f"{one:16.2f}" for one in row))
            run.log(number, format=name, **dict(zip(COLUMNS, row, strict=True)))
            show(number + 1, len(config.formats), {"bits": float(bits)})
    draw(found, reference, str(run.path("figures/accuracies.png")))
    summary: dict[str, Any] = {"real": reference, "seconds": time.monotonic() - began}
    run.finish(
        {**summary, **{n: dict(zip(COLUMNS, r, strict=True)) for n, r in found.items()}}
    )


COLUMNS = ("rounded_layer", "rounded_channel", "trained_layer", "trained_channel")

if __name__ == "__main__":
    bilevel.launch(main, Config())
