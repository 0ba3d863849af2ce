"""What a quantiser is: from latent weights to weights of few levels, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.known import known
from bilevel.number_formats import NumberFormat
from bilevel.number_formats.number_format import cast
from bilevel.number_formats.recipe import Recipe, reduced
from bilevel.quantized.channels import Channels
from bilevel.trees import Tree

Schedule: TypeAlias = float | Callable[[jax.Array], Any]
"""A constant, or `step -> value`, any optax schedule, say."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A value in a pytree that is none of its leaves, but a part of its structure.

    Attributes:
        value: with a hash.
    """

    value: Any


class At(NamedTuple):
    """Where in training a quantiser is used.

    Attributes:
        step: `[]` int32, steps of the optimiser that were taken.
        key: for the draws of this step and of this array of weights, or None.
        batch_axes: how many of the first axes count examples, of activations.
    """

    step: jax.Array
    key: jax.Array | None = None
    batch_axes: Static = Static(0)


class Codes(NamedTuple):
    """Weights as integers: offset + scale decode(codes).

    Attributes:
        codes: integers, of the shape of the weights.
        scale: broadcasts against them; None for 1, which takes no room.
        offset: broadcasts against them; None for 0.
        levels: `[n]`, in place of the format's where they are learned.
    """

    codes: jax.Array
    scale: jax.Array | None = None
    offset: jax.Array | None = None
    levels: jax.Array | None = None


class Quantizer(NamedTuple):
    """How one array of latent weights becomes one of quantised weights.

    Weights are floats `[..., out]` (kernels of Flax), latent weights of the same shape
    and dtype, but for quantisers on the simplex: `[..., out, n]` for n levels.

    Attributes:
        name: as in the literature.
        number_format: of the levels, without scale.
        start: `(weights, key) -> latent`, the latent weights of given real ones.
        learn: `weights -> learned`, what is learned besides, scales, say; () if nothing
            is.
        quantize: `(latent, learned, at) -> weights`; its derivative is the rule's
            pull-back.
        encode: `(latent, learned) -> Codes` of the weights that are deployed.
        project: `(latent, at) -> latent`, to apply after each step of the optimiser.
        per_channel: what has a scale of its own, see `scales`; it is compared with the
            layout of the weights.
        recipe: the call that makes the quantiser again, so that it can be pickled; None
            where nobody said. Arguments must pickle, too, which schedules of optax do
            not: they are closures.
    """

    name: str
    number_format: NumberFormat
    start: Callable[[jax.Array, jax.Array | None], jax.Array]
    learn: Callable[[jax.Array], Tree]
    quantize: Callable[[jax.Array, Tree, At], jax.Array]
    encode: Callable[[jax.Array, Tree], Codes]
    project: Callable[[jax.Array, At], jax.Array]
    per_channel: Channels = False
    recipe: Recipe | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The call that makes it: functions that are closures cannot be pickled."""
        return reduced(self)


def value_at(schedule: Schedule, step: jax.Array) -> jax.Array:
    """The value of a schedule at a step, a constant for a derivative."""
    value = schedule(step) if callable(schedule) else schedule
    return jax.lax.stop_gradient(jnp.asarray(value))


def positive(name: str, schedule: Schedule) -> None:
    """Raises `ValueError` for a constant, or a schedule's first value, not above 0."""
    first = schedule(jnp.zeros((), jnp.int32)) if callable(schedule) else schedule
    given = known(first)
    if given is not None and not np.all(given > 0):
        raise ValueError(f"{name} must be positive, got {given}.")


def as_latent(name: str, weights: jax.Array) -> jax.Array:
    """Latent weights, or `ValueError`: integers have no gradient."""
    weights = jnp.asarray(weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(
            f"{name}: latent weights are moved by gradients and must be floats, got "
            f"{weights.dtype} {weights.shape}; convert them, or leave them out of "
            "`where`."
        )
    return weights


def unchanged(latent: jax.Array, at: At) -> jax.Array:
    """The projection of quantisers that need none."""
    del at
    return latent


def as_they_are(weights: jax.Array, key: jax.Array | None) -> jax.Array:
    """Real weights as the first latent ones."""
    del key
    return weights


def nothing(weights: jax.Array) -> tuple[()]:
    """What is learned where only latent weights are."""
    del weights
    return ()


def decode(number_format: NumberFormat | None, codes: Codes, dtype: Any) -> jax.Array:
    """The weights that codes stand for; the format is not asked where levels are."""
    wide = jnp.promote_types(dtype, jnp.float32)
    if codes.levels is not None:
        level = codes.levels.astype(wide)[codes.codes.astype(jnp.int32)]
    elif number_format is not None:
        level = number_format.decode(codes.codes, wide)
    else:
        raise ValueError("codes without levels need a number format to decode them.")
    scaled = level if codes.scale is None else codes.scale.astype(wide) * level
    offset = 0 if codes.offset is None else codes.offset.astype(wide)
    return cast(scaled + offset, dtype)


def with_slope(value: jax.Array, slope: jax.Array | float, x: jax.Array) -> jax.Array:
    """`value`, exactly, with the derivative `slope` in x, a constant for the next one.

    So is every surrogate gradient made: a Hessian through it is M H M, symmetric.
    """
    return also_slope(jax.lax.stop_gradient(value), slope, x)


def also_slope(value: jax.Array, slope: jax.Array | float, x: jax.Array) -> jax.Array:
    """`value` with the derivative `slope` in x besides those that it has."""
    moved = x - jax.lax.stop_gradient(x)  # zero
    return value + (jax.lax.stop_gradient(slope) * moved).astype(value.dtype)


def rounded(number_format: NumberFormat, u: jax.Array) -> jax.Array:
    """The level that u rounds to; NaN stays, which some formats make a number."""
    return jnp.where(jnp.isnan(u), u, number_format.round(u))


def is_within(u: jax.Array, least: float, most: float) -> jax.Array:
    """Whether u lies in a range, up to rounding: max |x| / max_abs is at its end."""
    slack = 4 * float(jnp.finfo(u.dtype).eps)
    return (least - slack * abs(least) <= u) & (u <= most + slack * abs(most))
