"""The settings of `quantized.py`: the network, the quantiser and the optimiser."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import linen

from bilevel import number_formats, quantized
from bilevel.experiments.config import field
from bilevel.quantized import scales


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The network: dense layers without biases."""

    hidden: tuple[int, ...] = field((512, 512), help="widths")
    normalise: bool = field(True, help="batch normalisation behind every layer")
    dropout: float = field(0.0, help="of the inputs of every layer", maximum=0.9)
    activation: Literal["relu", "sign"] = field("relu", help="of hidden layers")
    spread: float = field(
        1.0, help="first weights are uniform within +- this", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """The quantiser of all weights; each takes what it knows of these."""

    method: Literal[
        "none",
        "adaste",
        "approx_sign",
        "bayesbinn",
        "binary_connect",
        "bop",
        "clipped_ste",
        "dorefa",
        "lsq",
        "mirror_descent_softmax",
        "mirror_descent_tanh",
        "proxquant",
        "reste",
        "softmax_projection",
        "ste",
        "swish_sign",
        "tanh_projection",
        "twn",
        "xnor",
    ] = field("adaste", help="how weights come to levels; none: real weights")
    number_format: str = field("binary", help="of the levels: ternary, int4, ...")
    scale: Literal["none", "max_abs", "full_range", "mean_abs", "least_squares"] = (
        field("none", help="of the levels, from the weights")
    )
    per_channel: bool = field(False, help="a scale for each output channel")
    start: float = field(
        0.01, help="rho of AdaSTE, kappa of tanh, softmax, lambda of ProxQuant"
    )
    end: float = field(200.0, help="the same in the end; it grows by a factor a step")
    wait: float = field(0.0, help="part of the steps before ProxQuant's lambda")
    until: float = field(0.75, help="part of the steps in which it has grown")
    alpha: float = field(0.01, help="AdaSTE: overshoot of the wells", minimum=0.0)
    floor: float = field(0.5, help="AdaSTE: least nudge, in half gaps", minimum=0.0)
    centred: bool = field(False, help="AdaSTE with nudges to both sides")
    as_released: bool = field(False, help="AdaSTE with the published code's defects")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """Adam or SGD, but for BayesBiNN and Bop, which have their own."""

    name: Literal["adam", "sgd"] = field("adam", help="the optimiser")
    learning_rate: float = field(1e-3, help="at first; of Bop: adaptivity")
    schedule: Literal["cosine", "constant"] = field("cosine", help="of the rate")
    momentum: float = field(0.9, help="of Adam, SGD, BayesBiNN", minimum=0.0)
    average: float = field(
        0.0, help="momentum of the weights' gradient, before it is pulled back"
    )
    threshold: float = field(1e-8, help="of Bop", minimum=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = field(
        "digits", help="digits are embedded"
    )
    seed: int = field(0, help="of everything")
    num_seeds: int = field(
        1, help="networks to train side by side, from the seed on", minimum=1
    )
    num_train: int = field(0, help="training images to use; 0: all", minimum=0)
    num_validation: int = field(0, help="held out of training", minimum=0)
    inputs: Literal["unit", "signed", "standard"] = field(
        "signed", help="in [0, 1], in [-1, 1], or with mean 0 and deviation 1"
    )
    num_epochs: int = field(20, help="passes over the training data", minimum=1)
    batch_size: int = field(100, help="examples in a step", minimum=2)
    model: Model = dataclasses.field(default_factory=Model)
    quantization: Quantization = dataclasses.field(default_factory=Quantization)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)


class Network(linen.Module):
    """Dense layers, each normalised by the batch, or by the width of its inputs."""

    settings: Model

    @linen.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[B, 10]` of inputs `[B, n]`."""
        own = self.settings
        first = lambda key, shape, dtype: jax.random.uniform(
            key, shape, dtype, -own.spread, own.spread
        )
        sign = quantized.clipped_ste(number_formats.binary())
        for index, width in enumerate((*own.hidden, 10)):
            if index and own.activation == "relu":
                x = jax.nn.relu(x)
            elif index:
                x = quantized.activation(sign, x)
            x = linen.Dropout(own.dropout, deterministic=not train)(x)
            gain = (2 / x.shape[-1]) ** 0.5
            x = gain * linen.Dense(width, use_bias=False, kernel_init=first)(x)
            if own.normalise:
                # Without momentum the statistics are those of the last batch.
                x = linen.BatchNorm(
                    use_running_average=not train,
                    momentum=0.0,
                    epsilon=1e-4,
                    use_bias=False,
                    use_scale=False,
                )(x)
        return x


def quantizer_of(config: Config, num_steps: int) -> quantized.Quantizer | None:
    """The quantiser, or None for real weights."""
    own = config.quantization
    if own.method == "none":
        return None
    levels = number_formats.by_name(own.number_format)
    scale = None if own.scale == "none" else scale_of(own.scale, own.per_channel)
    strength = growing(own, num_steps)
    of_levels: dict[str, Callable[[], quantized.Quantizer]] = {
        "adaste": lambda: quantized.adaste(
            levels,
            strength,
            alpha=own.alpha,
            floor=own.floor,
            centred=own.centred,
            scale=scale,
            as_released=own.as_released,
        ),
        "binary_connect": lambda: quantized.binary_connect(levels, scale=scale),
        "clipped_ste": lambda: quantized.clipped_ste(levels, scale=scale),
        "lsq": lambda: quantized.lsq(
            levels, per_channel=own.per_channel, scale=scales.published_for_lsq
        ),
        "mirror_descent_softmax": lambda: quantized.mirror_descent_softmax(
            levels, strength
        ),
        "mirror_descent_tanh": lambda: quantized.mirror_descent_tanh(
            levels, strength, scale=scale
        ),
        "proxquant": lambda: quantized.proxquant(levels, strength, scale=scale),
        "softmax_projection": lambda: quantized.softmax_projection(levels, strength),
        "ste": lambda: quantized.ste(levels, scale=scale),
        "tanh_projection": lambda: quantized.tanh_projection(
            levels, strength, scale=scale
        ),
    }
    if own.method in of_levels:
        return of_levels[own.method]()
    binary: dict[str, Callable[[], quantized.Quantizer]] = {
        "approx_sign": lambda: quantized.approx_sign(scale=scale),
        "bayesbinn": quantized.bayesbinn,
        "bop": quantized.bop,
        "reste": lambda: quantized.reste(
            quantized.reste_schedule(num_steps), scale=scale
        ),
        "swish_sign": lambda: quantized.swish_sign(scale=scale),
        "xnor": lambda: quantized.xnor(per_channel=own.per_channel),
    }
    if own.method in binary and levels.name == "binary":
        return binary[own.method]()
    if own.method == "twn" and levels.name == "ternary":
        return quantized.twn(per_channel=own.per_channel)
    if own.method == "dorefa" and levels.name == f"int{levels.bits}":
        return quantized.dorefa(levels.bits)
    raise ValueError(
        f"quantization.method={own.method!r} has no weights of the format "
        f"{own.number_format!r}: twn wants ternary, dorefa int2 to int8, "
        f"{', '.join(binary)} binary."
    )


def growing(own: Quantization, num_steps: int) -> Callable[[Any], jax.Array]:
    """From start to end by a constant factor; before it, for ProxQuant, 0."""
    first, last = own.wait * num_steps, own.until * num_steps

    def strength(step: Any) -> jax.Array:
        part = jnp.clip((step - first) / max(last - first, 1), 0, 1)
        value = own.start * (own.end / own.start) ** part
        is_waiting = (own.method == "proxquant") & (jnp.asarray(step) < first)
        return jnp.where(is_waiting, 0, value)

    return strength


def scale_of(name: str, per_channel: bool) -> scales.Scale:
    """One of `quantized.scales` by its name, for a layer or for each output channel."""
    scale = getattr(scales, name)
    return scales.of_channels(scale) if per_channel else scale


def optimizer_of(
    config: Config, num_steps: int, num_examples: int
) -> optax.GradientTransformation:
    """Adam or SGD, or the rule of BayesBiNN or Bop."""
    own = config.optimizer
    rate = own.learning_rate
    schedule = optax.cosine_decay_schedule(rate, num_steps)
    chosen = schedule if own.schedule == "cosine" else rate
    if config.quantization.method == "bayesbinn":
        return quantized.bayesbinn_updates(chosen, num_examples, momentum=own.momentum)
    if config.quantization.method == "bop":
        return quantized.bop_flips(rate, own.threshold)
    if own.name == "sgd":
        return optax.sgd(chosen, own.momentum or None)
    return optax.adam(chosen, b1=own.momentum)


def average_of(config: Config) -> optax.GradientTransformation:
    """The mean over steps of the gradient that is pulled back.

    A nudge asks which way the gradient points. That of a small batch points anywhere.
    """
    own = config.optimizer.average
    return optax.ema(own) if own else optax.identity()
