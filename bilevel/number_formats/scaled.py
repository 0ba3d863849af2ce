"""A scale for any format, one or one for each channel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.known import known
from bilevel.number_formats.number_format import NumberFormat, as_float


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
        ValueError: a scale that is not positive and finite; when they are asked for,
            levels of a scale that is traced.

    Example:
        >>> from bilevel import number_formats
        >>> half = scaled(number_formats.posit(8, 1), 0.5)
        >>> half.round(jnp.array([0.26, -7.1])).tolist()
        [0.265625, -7.0]
    """
    _require_scale(number_format.name, scale)
    name = f"{number_format.name}*scale"

    def quotient(x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(as_float(name, x).dtype, jnp.float32)
        return jnp.asarray(x, wide) * (1 / jnp.asarray(scale, wide))

    def encode(x: jax.Array) -> jax.Array:
        return number_format.encode(quotient(x))

    def decode(codes: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        wide = jnp.promote_types(dtype, jnp.float32)
        level = number_format.decode(codes, wide)
        return (jnp.asarray(scale, wide) * level).astype(dtype)

    def round_(x: jax.Array) -> jax.Array:
        level = number_format.round(quotient(x))
        return (jnp.asarray(scale, level.dtype) * level).astype(jnp.asarray(x).dtype)

    def levels() -> np.ndarray:
        given = known(scale)
        if given is None:
            raise ValueError(
                f"{name}: the scale is traced, and its levels not known yet; ask the "
                "format before it is scaled."
            )
        return given.astype(np.float64)[..., None] * number_format.levels()

    given = known(scale)
    if given is None:
        ends = [jnp.asarray(scale) * end for end in number_format.range]
    else:
        ends = [given.astype(np.float64) * end for end in number_format.range]
        ends = [float(end) if end.ndim == 0 else end for end in ends]
    return number_format._replace(
        name=name,
        range=(ends[0], ends[1]),
        encode=encode,
        decode=decode,
        round=round_,
        levels=levels,
    )


def _require_scale(name: str, scale: Any) -> None:
    given = known(scale)
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
