"""Scales from the weights themselves: of all, or of each output channel."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.iteration import iterate
from bilevel.known import known
from bilevel.number_formats import NumberFormat, scaled

Scale: TypeAlias = float | jax.Array | Callable[[NumberFormat, jax.Array], jax.Array]
"""A number, an array that broadcasts, or `(number_format, weights) -> scale`."""


def max_abs(
    number_format: NumberFormat, weights: jax.Array, *, per_channel: bool = False
) -> jax.Array:
    """The largest magnitude at the end of the range: max |w| / max |level|.

    Args:
        number_format: without scale.
        weights: `[..., out]`.
        per_channel: one for each output channel, `[1, ..., out]`; otherwise `[]`.

    Returns:
        The scale; 1 where all weights are 0.
    """
    axes = channel_axes(weights, per_channel)
    largest = jnp.max(jnp.abs(weights), axes, keepdims=per_channel)
    return largest_or_one(largest / greatest(number_format))


def mean_abs(
    number_format: NumberFormat, weights: jax.Array, *, per_channel: bool = False
) -> jax.Array:
    """mean |w|: of {-a, a} the nearest to the weights in the mean square.

    Args:
        number_format: is not looked at.
        weights: `[..., out]`.
        per_channel: one for each output channel, `[1, ..., out]`; otherwise `[]`.

    Returns:
        The scale; 1 where all weights are 0.

    Source: Rastegari et al. 2016, arXiv:1603.05279, equation 6.
    """
    del number_format
    axes = channel_axes(weights, per_channel)
    return largest_or_one(jnp.mean(jnp.abs(weights), axes, keepdims=per_channel))


def least_squares(
    number_format: NumberFormat, weights: jax.Array, *, per_channel: bool = False
) -> jax.Array:
    """That of the least squared error: argmin over s of sum (w - s round(w / s))^2.

    A search around `max_abs` and, for formats that are finest near 1, around the root
    mean square; to 1.4 %.

    Args:
        number_format: without scale.
        weights: `[..., out]`.
        per_channel: one for each output channel, `[1, ..., out]`; otherwise `[]`.

    Returns:
        The scale; 1 where all weights are 0. Cost: 97 roundings.
    """
    axes = channel_axes(weights, per_channel)
    wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    fill = max_abs(number_format, wide, per_channel=per_channel)
    middle = jnp.sqrt(jnp.mean(jnp.square(wide), axes, keepdims=per_channel))
    middle = largest_or_one(middle)

    def noise(scale: jax.Array) -> jax.Array:
        error = wide - scaled(number_format, scale).round(wide)
        found = jnp.sum(jnp.square(error), axes, keepdims=per_channel)
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
    is_zero = jnp.all(wide == 0, axes, keepdims=per_channel)
    return jnp.where(is_zero, 1, best(around(found, np.array([-0.02, 0.0, 0.02]))))


def of_channels(
    scale: Callable[..., jax.Array],
) -> Callable[[NumberFormat, jax.Array], jax.Array]:
    """A scale for each output channel: `of_channels(max_abs)`."""
    return lambda number_format, weights: scale(
        number_format, weights, per_channel=True
    )


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


def require_scale(name: str, scale: Scale | None) -> None:
    """Raises `ValueError` for a constant scale that is not positive and finite."""
    given = None if scale is None or callable(scale) else known(scale)
    if given is not None and not np.all((given > 0) & np.isfinite(given)):
        raise ValueError(f"{name}: scale must be positive and finite, got {scale}.")


def channel_axes(weights: jax.Array, per_channel: bool) -> tuple[int, ...] | None:
    """The axes that one scale is for: all, or all but the last.

    Raises:
        ValueError: channels of weights that have one axis only.
    """
    if not per_channel:
        return None
    if weights.ndim < 2:
        raise ValueError(
            f"a scale for each output channel needs weights [..., out], got the shape "
            f"{weights.shape}: each would have its own. Leave them out of `where`."
        )
    return tuple(range(weights.ndim - 1))


def greatest(number_format: NumberFormat) -> Any:
    """The largest magnitude of a level."""
    least, most = number_format.range
    return max(abs(least), abs(most))


def largest_or_one(scale: jax.Array) -> jax.Array:
    """1 in place of a scale of 0, whose quotient is not a number."""
    return jnp.where(scale > 0, scale, 1).astype(scale.dtype)
