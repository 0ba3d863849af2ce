"""Stochastic rounding: up or down by chance, right in the mean."""

import jax
import jax.numpy as jnp

from bilevel.number_formats.number_format import NumberFormat, as_float, cast


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
        Levels, in the dtype of x, whose rounding of levels that it lacks is not drawn.
        Beyond the range it is the end of the range; where x is not a number, what
        `round` makes of it. Chances are those of float32 (float64 for that), and drawn
        to 2^-46, whatever the dtype of x: a draw in bfloat16 has 7 bits, and would take
        every smaller chance for 1/128.

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
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = jnp.clip(x, *(jnp.asarray(end, x.dtype) for end in number_format.range))
    codes = number_format.encode(x)
    near = number_format.decode(codes, x.dtype)
    direction = jnp.sign(x - near)
    step = jnp.where(jnp.isfinite(direction), direction, 0).astype(jnp.int32)
    other = number_format.decode(number_format.neighbour(codes, step), x.dtype)
    gap = other - near
    part = (x - near) / jnp.where(gap == 0, 1, gap)
    drawn = jnp.where(happens(key, part) & (gap != 0), other, near)
    drawn = cast(drawn, given.dtype)
    return jnp.where(jnp.isnan(given), number_format.round(given), drawn)


def happens(key: jax.Array, chance: jax.Array) -> jax.Array:
    """True with the chances given, `[...]`, to twice the bits of their mantissa.

    A uniform number has as many bits as the mantissa, behind the point. Two are a
    number of two digits, which is compared digit by digit.
    """
    first, second = jax.random.uniform(key, (2, *chance.shape), chance.dtype)
    base = 2.0 ** jnp.finfo(chance.dtype).nmant
    digit = jnp.floor(base * chance)
    place = base * first
    return (place < digit) | ((place == digit) & (second < base * chance - digit))
