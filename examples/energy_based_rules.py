"""The settings of `energy_based.py`, and the rule that they describe."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import linen

from bilevel import energy, hypergradients
from bilevel.energy import networks, relaxations
from bilevel.energy.rules.multi_pass_dual_propagation import Variant
from bilevel.experiments.config import field


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The network."""

    hidden: tuple[int, ...] = field((256, 256), help="widths of the dense layers")
    channels: tuple[int, ...] = field((), help="3 x 3 convolutions, each pooled 2 x 2")
    kind: Literal["hopfield", "resistive"] = field(
        "hopfield", help="of the energies that contrastive rules relax"
    )
    activation: str = field("relu", help="of the hidden layers")
    output: str = field("identity", help="activation of a Hopfield network's output")
    init_scale: float = field(1.0, help="variance of weights times fan-in", minimum=0.0)
    gain: float = field(100.0, help="of a resistive network's inputs", minimum=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """The rule; each takes what it knows of these."""

    rule: Literal[
        "back_propagation",
        "contrastive_hebbian_learning",
        "coupled_learning",
        "difference_target_propagation",
        "direct_feedback_alignment",
        "dual_propagation",
        "equilibrium_propagation",
        "feedback_alignment",
        "fenchel_back_propagation",
        "holomorphic_equilibrium_propagation",
        "implicit",
        "incremental_predictive_coding",
        "kolen_pollack",
        "lpom",
        "multi_pass_dual_propagation",
        "predictive_coding",
        "recurrent_back_propagation",
        "sign_symmetry",
        "truncated_back_propagation_through_time",
        "z_il",
    ] = field("equilibrium_propagation", help="how the gradient is made")
    cost: Literal["squared_error", "cross_entropy"] = field(
        "squared_error", help="of the outputs"
    )
    beta: float = field(0.2, help="nudge of each sample", minimum=0.0)
    alpha: float = field(0.5, help="of dual propagation")
    original: bool = field(False, help="dual propagation of 2023, not DP-transpose")
    damped: bool = field(False, help="the original rule, stable in several passes")
    passes: Literal[
        "backward", "forward", "forward_backward", "odd_even", "even_odd"
    ] = field("backward", help="of dual propagation in several passes")
    nudging: Literal["positive", "negative", "random", "centred"] = field(
        "centred", help="phases of equilibrium propagation, coupled learning"
    )
    num_points: int = field(4, help="of the holomorphic rule", minimum=2)
    free_steps: int = field(15, help="sweeps of the free phase", minimum=1)
    nudged_steps: int = field(
        15, help="sweeps of the nudged phase, steps of inference, passes", minimum=1
    )
    order: str = field("even_odd", help="of a sweep")
    step_size: float = field(0.1, help="of predictive coding's states", minimum=0.0)
    momentum: float = field(0.0, help="of predictive coding's states", minimum=0.0)
    noise: float = field(0.0, help="of the states, at every sweep", minimum=0.0)
    rate: float = field(
        0.01, help="incremental PC: of parameters; DTP: of targets", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """How the parameters move."""

    name: Literal["sgd", "adam", "adamw"] = field("adam", help="the optimiser")
    learning_rates: tuple[float, ...] = field((1e-3,), help="one, or one per layer")
    momentum: float = field(0.0, help="of SGD", minimum=0.0)
    weight_decay: float = field(0.0, help="of AdamW", minimum=0.0)
    schedule: Literal["constant", "cosine", "exponential"] = field(
        "cosine", help="of the rate; exponential: times 0.99 each epoch"
    )
    warm_up: float = field(0.0, help="part of the steps, rising linearly", minimum=0.0)
    clip: float = field(0.0, help="norm of the gradient at most; 0: any", minimum=0.0)


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
    inputs: Literal["unit", "signed"] = field("unit", help="in [0, 1] or [-1, 1]")
    num_epochs: int = field(10, help="passes over the training data", minimum=1)
    batch_size: int = field(32, help="examples in a step", minimum=1)
    angles: bool = field(False, help="log angles to the true gradient, per layer")
    model: Model = dataclasses.field(default_factory=Model)
    learning: Learning = dataclasses.field(default_factory=Learning)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)


def chain_of(model: Model) -> energy.Feedforward:
    """The layers, ending in ten outputs."""
    init = linen.initializers.variance_scaling(model.init_scale, "fan_in", "uniform")
    dense = [linen.Dense(width, kernel_init=init) for width in (*model.hidden, 10)]
    if not model.channels:
        return energy.feedforward(dense, model.activation)
    flat = lambda s: s.reshape(len(s), -1)
    blocks: list[Any] = [
        [neighbours, linen.Dense(number, kernel_init=init), max_pool]
        for number in model.channels
    ]
    first, *rest = dense
    return energy.feedforward([*blocks, [flat, first], *rest], model.activation)


def neighbours(images: jax.Array) -> jax.Array:
    """Each pixel with its eight neighbours, `[B, H, W, C] -> [B, H, W, 9 C]`.

    A dense layer behind it is `linen.Conv(features, (3, 3))`, whose derivative XLA
    computes 17 times as slowly on a CPU inside of a compiled loop.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    parts = [padded[:, i : i + height, j : j + width] for i, j in shifts]
    return jnp.concatenate(parts, -1)


def max_pool(images: jax.Array) -> jax.Array:
    """The maximum of each square of 2 x 2, `[B, H, W, C] -> [B, H / 2, W / 2, C]`."""
    # `linen.max_pool` does the same; its derivative takes five times as long on a CPU.
    batch, height, width, channels = images.shape
    squares = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return squares.max((2, 4))


def network_of(config: Config, num_inputs: int) -> energy.EnergyNetwork:
    """The energy that contrastive rules relax."""
    model = config.model
    if model.kind == "resistive":
        sizes = [num_inputs, *model.hidden, 10]
        return networks.resistive(sizes, gain=model.gain, spread=model.init_scale)
    return networks.hopfield(chain_of(model), model.output)


def cost_of(config: Config) -> energy.Cost:
    """The cost of the outputs."""
    if config.learning.cost == "squared_error":
        return energy.squared_error()
    return energy.cross_entropy()


def rule_of(config: Config, num_inputs: int) -> energy.LearningRule:
    """The learning rule, with what it needs of the settings."""
    own, cost = config.learning, cost_of(config)
    _check_used(own)
    _check_model(config)
    if own.rule in ON_CHAINS:
        return ON_CHAINS[own.rule](chain_of(config.model), cost, own)
    return ON_ENERGIES[own.rule](network_of(config, num_inputs), cost, own)


def _check_used(own: Learning) -> None:
    """A setting that its rule does not know would be set in vain, without a word."""
    default = Learning()
    for name, rules in USED_BY.items():
        if own.rule not in rules and getattr(own, name) != getattr(default, name):
            raise ValueError(
                f"learning.{name}={getattr(own, name)!r} has no effect on {own.rule}, "
                f"only on {', '.join(sorted(rules))}; leave it out, or take one of "
                "these rules."
            )


def _check_model(config: Config) -> None:
    """As `_check_used`, for the settings of a network."""
    is_chain = config.learning.rule in ON_CHAINS
    kind = "chain" if is_chain else config.model.kind
    unused = {
        "chain": ("kind", "output", "gain"),
        "hopfield": ("gain",),
        "resistive": ("output", "channels"),
    }
    default = Model()
    for name in unused[kind]:
        if getattr(config.model, name) != getattr(default, name):
            raise ValueError(
                f"model.{name}={getattr(config.model, name)!r} has no effect on "
                f"{config.learning.rule} on a {kind} network; leave it out, or take "
                "another rule or model.kind."
            )


def free(own: Learning) -> energy.Relaxation:
    """The solver of the free phase."""
    return relaxations.sweeps(own.free_steps, order=own.order, noise=own.noise)


def nudged(own: Learning) -> energy.Relaxation:
    """The solver of the nudged phases."""
    return relaxations.sweeps(own.nudged_steps, order=own.order, noise=own.noise)


def descent(own: Learning) -> energy.Relaxation:
    """The inference of predictive coding."""
    optimizer = optax.sgd(own.step_size, momentum=own.momentum or None)
    return relaxations.gradient(optimizer, own.nudged_steps, noise=own.noise)


def variant_of(own: Learning) -> Variant:
    """Which rule the dyads follow in several passes."""
    if own.damped:
        return "damped"
    return "original" if own.original else "transpose"


_SWEPT = {
    "contrastive_hebbian_learning",
    "coupled_learning",
    "equilibrium_propagation",
    "holomorphic_equilibrium_propagation",
    "recurrent_back_propagation",
}
# Settings that say what is done, not only how much, and the rules that know them.
USED_BY: dict[str, set[str]] = {
    "original": {"dual_propagation", "multi_pass_dual_propagation"},
    "damped": {"multi_pass_dual_propagation"},
    "passes": {"multi_pass_dual_propagation"},
    "nudging": {"coupled_learning", "equilibrium_propagation"},
    "num_points": {"holomorphic_equilibrium_propagation"},
    "order": {*_SWEPT, "implicit"},
    "momentum": {"predictive_coding"},
    "noise": {*_SWEPT, "predictive_coding"},
}

Make = Callable[[Any, energy.Cost, Learning], energy.LearningRule]

# Rules that train a feed-forward chain.
ON_CHAINS: dict[str, Make] = {
    "back_propagation": lambda chain, cost, own: energy.back_propagation(chain, cost),
    "feedback_alignment": lambda chain, cost, own: energy.feedback_alignment(
        chain, cost
    ),
    "direct_feedback_alignment": lambda chain, cost, own: (
        energy.direct_feedback_alignment(chain, cost)
    ),
    "sign_symmetry": lambda chain, cost, own: energy.sign_symmetry(chain, cost),
    "kolen_pollack": lambda chain, cost, own: energy.kolen_pollack(chain, cost),
    "dual_propagation": lambda chain, cost, own: energy.dual_propagation(
        chain, cost, alpha=own.alpha, beta=own.beta, original=own.original
    ),
    "multi_pass_dual_propagation": lambda chain, cost, own: (
        energy.multi_pass_dual_propagation(
            chain,
            cost,
            alpha=own.alpha,
            beta=own.beta,
            order=own.passes,
            num_passes=own.nudged_steps,
            variant=variant_of(own),
        )
    ),
    "fenchel_back_propagation": lambda chain, cost, own: (
        energy.fenchel_back_propagation(chain, cost, betas=own.beta)
    ),
    "lpom": lambda chain, cost, own: energy.lpom(chain, cost, beta=own.beta),
    "predictive_coding": lambda chain, cost, own: energy.predictive_coding(
        chain, cost, descent(own), beta=own.beta
    ),
    "incremental_predictive_coding": lambda chain, cost, own: (
        energy.incremental_predictive_coding(
            chain,
            cost,
            rate=own.rate,
            num_steps=own.nudged_steps,
            step_size=own.step_size,
        )
    ),
    "z_il": lambda chain, cost, own: energy.z_il(chain, cost),
    "difference_target_propagation": lambda chain, cost, own: (
        energy.difference_target_propagation(chain, cost, rate=own.rate)
    ),
}
# Rules that train any network whose state is the argmin of an energy.
ON_ENERGIES: dict[str, Make] = {
    "contrastive_hebbian_learning": lambda network, cost, own: (
        energy.contrastive_hebbian_learning(network, cost, free(own), nudged(own))
    ),
    "coupled_learning": lambda network, cost, own: energy.coupled_learning(
        network,
        cost,
        free(own),
        nudged(own),
        beta=own.beta,
        nudging=own.nudging,  # pyright: ignore[reportArgumentType]  # no "random"
    ),
    "equilibrium_propagation": lambda network, cost, own: (
        energy.equilibrium_propagation(
            network, cost, free(own), nudged(own), beta=own.beta, nudging=own.nudging
        )
    ),
    "holomorphic_equilibrium_propagation": lambda network, cost, own: (
        energy.holomorphic_equilibrium_propagation(
            network,
            cost,
            free(own),
            nudged(own),
            beta=own.beta,
            num_points=own.num_points,
        )
    ),
    "recurrent_back_propagation": lambda network, cost, own: (
        energy.recurrent_back_propagation(network, cost, free(own))
    ),
    "implicit": lambda network, cost, own: energy.by_hypergradient(
        "implicit",
        network,
        cost,
        energy.state_solver(network, order=own.order, max_steps=own.free_steps),
        hypergradients.implicit(),
    ),
    "truncated_back_propagation_through_time": lambda network, cost, own: (
        energy.truncated_back_propagation_through_time(
            network, cost, num_steps=own.free_steps, truncation=own.nudged_steps
        )
    ),
}
