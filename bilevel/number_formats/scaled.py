"""A scale for any format, one or one for each channel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.known import known
from bilevel.number_formats.number_format import NumberFormat, as_float, cast
from bilevel.number_formats.recipe import made_by

# What is multiplied by the reciprocal of a scale: beyond 2^126 float32 has none that is
# normal, and XLA on CPU takes subnormals for zero.
_FAR, _NEAR = 2.0**64, 2.0**-64


def scaled(number_format: NumberFormat, scale: Any) -> NumberFormat:
    """The format with every level times s: x -> s round(x (1 / s)).

    The quotient is taken as a product: XLA does so where s is one number, and what is
    trained must round as what is exported.

    Args:
        number_format: to be scaled.
        scale: s > 0, a number or an array that broadcasts against x: `[1, out]` for a
            kernel `[in, out]` is one for each output channel. It may be traced, to be
            learned.

    Returns:
        A `NumberFormat` with the same codes. With an array of scales `levels()` is
        `[..., n]`, and the ends of the range are arrays.

    Raises:
        ValueError: a scale that is not positive and finite, or smaller than the least
            normal number of float32; when they are asked for, levels of a scale that is
            traced.

    Example:
        >>> from bilevel import number_formats
        >>> half = scaled(number_formats.posit(8, 1), 0.5)
        >>> half.round(jnp.array([0.26, -7.1])).tolist()
        [0.265625, -7.0]
    """
    given = known(scale)
    _require_scale(number_format.name, given)
    name = f"{number_format.name}*scale"

    def units(x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(as_float(name, x).dtype, jnp.float32)
        if given is not None and np.any(given > float(jnp.finfo(wide).max)):
            raise ValueError(f"{name}: the scale {_told(given)} is beyond {wide}.")
        return quotient(jnp.asarray(x, wide), jnp.asarray(scale, wide))

    def encode(x: jax.Array) -> jax.Array:
        return number_format.encode(units(x))

    def decode(codes: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        wide = jnp.promote_types(dtype, jnp.float32)
        level = number_format.decode(codes, wide)
        return times(jnp.asarray(scale, wide), level, dtype)

    def round_(x: jax.Array) -> jax.Array:
        level = number_format.round(units(x))
        own = jnp.asarray(scale, level.dtype)
        return times(own, level, jnp.asarray(x).dtype)

    def levels() -> np.ndarray:
        if given is None:
            raise ValueError(
                f"{name}: the scale is traced, and its levels not known yet; ask the "
                "format before it is scaled."
            )
        return given.astype(np.float64)[..., None] * number_format.levels()

    if given is None:
        ends = [jnp.asarray(scale) * end for end in number_format.range]
    else:
        ends = [given.astype(np.float64) * end for end in number_format.range]
        ends = [float(end) if end.ndim == 0 else end for end in ends]
    anchor = number_format.anchor
    made = number_format._replace(
        name=name,
        range=(ends[0], ends[1]),
        encode=encode,
        decode=decode,
        round=round_,
        levels=levels,
        anchor=None if anchor is None else scale * anchor,
    )
    return made_by(made, scaled, number_format, scale)


def quotient(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / s as the product x (1 / s), for every normal s: a far one in two steps."""
    unit = jnp.where(scale > _FAR, _NEAR, 1).astype(scale.dtype)
    return (x * unit) * (1 / (scale * unit))


def times(scale: jax.Array, level: jax.Array, dtype: Any) -> jax.Array:
    """s times a level, in a dtype; beyond its greatest number it is that."""
    most = float(jnp.finfo(level.dtype).max)
    product = scale * level
    found = jnp.where(jnp.isinf(level), product, jnp.clip(product, -most, most))
    return cast(found, dtype)


def _require_scale(name: str, given: np.ndarray | None) -> None:
    if given is None:
        return
    # XLA on CPU takes subnormals for zero.
    least = np.finfo(np.float32).tiny
    if not np.all((given >= least) & np.isfinite(given)):
        raise ValueError(
            f"{name}: the scale must be positive and finite, got {_told(given)}. One "
            "of 0 comes from weights that are all 0: take 1, or another channel's."
        )


def _told(given: np.ndarray) -> str:
    return str(given) if given.ndim == 0 else f"{given.min()} to {given.max()}"
