"""Stochastic rounding: up or down by chance, right in the mean."""

import jax
import jax.numpy as jnp

from bilevel.number_formats.number_format import NumberFormat, as_float


def stochastic_round(
    number_format: NumberFormat, key: jax.Array, x: jax.Array
) -> jax.Array:
    """Rounds to one of the two levels around x, so that the mean is x.

        P(up) = (x - down) / (up - down)

    Args:
        number_format: with the levels.
        key: of the draws.
        x: of any shape and float dtype.

    Returns:
        Levels, in the dtype of x. Beyond the range it is the end of the range; where x
        is not a number, what `round` makes of it.

    Source: Gupta et al. 2015, arXiv:1502.02551.

    Example:
        >>> from bilevel import number_formats
        >>> x = jnp.full(1000, 0.25)
        >>> drawn = stochastic_round(
        ...     number_formats.fixed_point(3, 0), jax.random.key(0), x
        ... )
        >>> sorted(set(drawn.tolist())), abs(float(drawn.mean()) - 0.25) < 0.05
        ([0.0, 1.0], True)
    """
    x = as_float("stochastic_round", x)
    given = x
    x = jnp.clip(x, *(jnp.asarray(end, x.dtype) for end in number_format.range))
    codes = number_format.encode(x)
    near = number_format.decode(codes, x.dtype)
    direction = jnp.sign(x - near)
    step = jnp.where(jnp.isfinite(direction), direction, 0).astype(jnp.int32)
    other = number_format.decode(number_format.neighbour(codes, step), x.dtype)
    gap = other - near
    part = (x - near) / jnp.where(gap == 0, 1, gap)
    goes = jax.random.uniform(key, x.shape, x.dtype) < part
    drawn = jnp.where(goes & (gap != 0), other, near)
    return jnp.where(jnp.isnan(given), number_format.round(given), drawn)
