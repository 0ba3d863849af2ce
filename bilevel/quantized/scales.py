"""Scales from the weights themselves: of all, or of each output channel."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.iteration import iterate
from bilevel.known import known
from bilevel.number_formats import NumberFormat, scaled
from bilevel.number_formats.floats import power_below
from bilevel.number_formats.number_format import anchor_of
from bilevel.quantized.blocks import of_blocks as of_blocks
from bilevel.quantized.channels import Channels, channel_axes

Scale: TypeAlias = float | jax.Array | Callable[[NumberFormat, jax.Array], jax.Array]
"""A number, an array that broadcasts, or `(number_format, weights) -> scale`."""
Rule: TypeAlias = Callable[..., jax.Array]
"""`(number_format, weights, *, per_channel) -> scale`, as those of this file."""

LEAST = 2.0**-120
"""The scale of weights that are all 0 in a format without 0: as good as none, and its
logarithm and its reciprocal are numbers of float32."""


def max_abs(
    number_format: NumberFormat, weights: jax.Array, *, per_channel: Channels = False
) -> jax.Array:
    """The largest magnitude at the anchor of the format: max |w| / anchor.

    For integers, codebooks and most minifloats that is the end of the range. For
    posit<n,es> it is 2^(2^es): larger numbers have fewer bits of fraction.

    Args:
        number_format: without scale.
        weights: `[..., out]`.
        per_channel: one for each output channel, `[1, ..., out]`; False: one, `[]`;
            axes: see `Channels`.

    Returns:
        The scale; of weights that are all 0 it is 1, and `LEAST` where 0 is no level.
    """
    largest, _ = _sizes(weights, per_channel)
    return _usable(number_format, largest / anchor_of(number_format), largest)


def full_range(
    number_format: NumberFormat, weights: jax.Array, *, per_channel: Channels = False
) -> jax.Array:
    """The largest magnitude at the end of the range, where posits are coarsest.

    As `max_abs`, of which it differs for posits and wide minifloats alone.
    """
    largest, _ = _sizes(weights, per_channel)
    return _usable(number_format, largest / greatest(number_format), largest)


def mean_abs(
    number_format: NumberFormat, weights: jax.Array, *, per_channel: Channels = False
) -> jax.Array:
    """mean |w|: of {-a, a} the nearest to the weights in the mean square.

    Args:
        number_format: is looked at for weights that are all 0.
        weights: `[..., out]`.
        per_channel: as in `max_abs`.

    Returns:
        The scale; of weights that are all 0 it is 1, and `LEAST` where 0 is no level.

    Source: Rastegari et al. 2016, arXiv:1603.05279, equation 6.
    """
    largest, unit = _sizes(weights, per_channel)
    mean = unit * _mean(jnp.abs(weights) * (1 / unit), per_channel)
    return _usable(number_format, mean, largest)


def published_for_lsq(
    number_format: NumberFormat, weights: jax.Array, *, per_channel: Channels = False
) -> jax.Array:
    """2 mean |w| / sqrt(Qp), at which LSQ starts as published.

    Qp is the greatest level of integers, the anchor of other formats. For 8 bits and
    normal weights it is 12 dB coarser than the scale of the least squares.

    Args:
        number_format: without scale.
        weights: `[..., out]`.
        per_channel: as in `max_abs`.

    Source: Esser et al. 2020, arXiv:1902.08153, section 2.1.
    """
    largest, unit = _sizes(weights, per_channel)
    mean = unit * _mean(jnp.abs(weights) * (1 / unit), per_channel)
    found = 2 * mean / math.sqrt(greatest_positive(number_format))
    return _usable(number_format, found, largest)


def least_squares(
    number_format: NumberFormat, weights: jax.Array, *, per_channel: Channels = False
) -> jax.Array:
    """That of the least squared error: argmin over s of sum (w - s round(w / s))^2.

    A search around `max_abs` and, for formats that are finest near 1, around the root
    mean square; to 1.4 %.

    Args:
        number_format: without scale.
        weights: `[..., out]`.
        per_channel: as in `max_abs`.

    Returns:
        The scale; of weights that are all 0 it is 1, and `LEAST` where 0 is no level.
        Cost: 97 roundings.
    """
    axes, keep = channel_axes(weights, per_channel), per_channel is not False
    weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    largest, unit = _sizes(weights, per_channel)
    wide = weights * (1 / unit)  # squares of others may be no numbers of the dtype
    fill = jnp.where(largest > 0, largest / unit, 1) / anchor_of(number_format)
    middle = jnp.sqrt(_mean(jnp.square(wide), per_channel))
    middle = jnp.where(middle > 0, middle, 1)

    def noise(scale: jax.Array) -> jax.Array:
        error = wide - scaled(number_format, scale).round(wide)
        found = jnp.sum(jnp.square(error), axes, keepdims=keep)
        return jnp.where(jnp.isnan(found), jnp.inf, found)

    def best(scales: jax.Array) -> jax.Array:
        """One after the other: all at once would need as many copies of the weights."""

        def step(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            index, scale, least = carry
            own = noise(scales[index])
            better = own < least
            new = jnp.where(better, scales[index], scale)
            return index + 1, new, jnp.where(better, own, least)

        start = (jnp.zeros((), jnp.int32), scales[0], noise(scales[0]))
        return iterate(step, start, num_steps=len(scales))[1]

    def around(center: jax.Array, exponents: np.ndarray) -> jax.Array:
        parts = jnp.asarray(2.0**exponents, wide.dtype)
        return parts.reshape((-1,) + (1,) * center.ndim) * center[None]

    coarse = [
        around(fill, np.arange(-6, 1, 0.25)),
        around(middle, np.arange(-8, 5, 0.25)),
    ]
    found = best(jnp.concatenate(coarse))
    found = best(around(found, np.arange(-0.2, 0.21, 0.04)))
    found = unit * best(around(found, np.array([-0.02, 0.0, 0.02])))
    return _usable(number_format, found, largest)


@dataclass(frozen=True)
class OfChannels:
    """A scale for each output channel, see `of_channels`.

    Attributes:
        scale: a rule of this file.
        per_channel: see `Channels`.
    """

    scale: Rule
    per_channel: Channels = True

    def __call__(self, number_format: NumberFormat, weights: jax.Array) -> jax.Array:
        """The scales of some weights."""
        return self.scale(number_format, weights, per_channel=self.per_channel)


def of_channels(scale: Rule, per_channel: Channels = True) -> OfChannels:
    """A scale for each output channel: `of_channels(max_abs)`.

    Args:
        scale: a rule of this file, or one of your own with `per_channel`.
        per_channel: the axes of the channels, see `Channels`.

    Example:
        >>> from bilevel import number_formats
        >>> heads = of_channels(max_abs, (-2, -1))  # of kernels [in, heads, dim]
        >>> heads(number_formats.symmetric(4), jnp.ones((8, 2, 3))).shape
        (1, 2, 3)
    """
    return OfChannels(scale, per_channel)


def scale_of(
    scale: Scale | None, number_format: NumberFormat, weights: jax.Array
) -> jax.Array:
    """The scale of some weights, at least float32; 1 for None.

    Raises:
        ValueError: one that does not broadcast to the weights.
    """
    wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    if callable(scale):
        own = scale(number_format, wide)
    else:
        own = jnp.asarray(1.0 if scale is None else scale, wide.dtype)
    if own.ndim and jnp.broadcast_shapes(own.shape, wide.shape) != wide.shape:
        raise ValueError(
            f"a scale of the shape {own.shape} does not broadcast to weights of the "
            f"shape {wide.shape}."
        )
    return own


def require_rule(name: str, scale: Any) -> None:
    """Raises `ValueError` for a scale that does not take `per_channel`."""
    if not callable(scale) or isinstance(scale, OfChannels):
        raise ValueError(
            f"{name}: scale must be a rule of quantized.scales, least_squares say, got "
            f"{scale!r}; for one for each output channel pass {name}(per_channel=...)."
        )


def require_scale(name: str, scale: Scale | None) -> None:
    """Raises `ValueError` for a constant scale that is not positive and finite."""
    given = None if scale is None or callable(scale) else known(scale)
    if given is not None and not np.all((given > 0) & np.isfinite(given)):
        raise ValueError(f"{name}: scale must be positive and finite, got {scale}.")


def channels_of(scale: Scale | None) -> Channels:
    """The channels that a scale is for; False where it does not say."""
    return scale.per_channel if isinstance(scale, OfChannels) else False


def greatest(number_format: NumberFormat) -> Any:
    """The largest magnitude of a level."""
    least, most = number_format.range
    return max(abs(least), abs(most))


def greatest_positive(number_format: NumberFormat) -> float:
    """Qp of LSQ: the greatest level or the anchor; Qn where none is positive."""
    most, anchor = float(number_format.range[1]), float(anchor_of(number_format))
    return min(most, anchor) if most > 0 else anchor


def _sizes(weights: jax.Array, per_channel: Channels) -> tuple[jax.Array, jax.Array]:
    """The largest magnitude, and a power of two near it, a constant for gradients.

    Sums of weights in its units are safe at the ends of the floats.
    """
    axes = channel_axes(weights, per_channel)
    wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    largest = jnp.max(
        jnp.abs(wide), axes, keepdims=per_channel is not False, initial=0.0
    )
    unit = jax.lax.stop_gradient(power_below(largest))
    most = 2.0 ** (int(jnp.finfo(wide.dtype).maxexp) - 8)
    return largest, jnp.clip(unit, 1 / most, most)


def _mean(x: jax.Array, per_channel: Channels) -> jax.Array:
    """The mean for each scale, 0 of none."""
    axes = channel_axes(x, per_channel)
    total = jnp.sum(x, axes, keepdims=per_channel is not False)
    return total / max(x.size // max(total.size, 1), 1)


def _usable(
    number_format: NumberFormat, scale: jax.Array, largest: jax.Array
) -> jax.Array:
    """A scale with a reciprocal, also where the weights are 0 or nearly so."""
    zero = number_format.round(jnp.zeros((), scale.dtype))
    of_nothing = jnp.where(zero == 0, 1, LEAST).astype(scale.dtype)
    least = 64 * float(jnp.finfo(scale.dtype).tiny)
    return jnp.where(largest > 0, jnp.maximum(scale, least), of_nothing)
