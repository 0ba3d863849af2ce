"""What a number format is: finitely many numbers, each with a code of some bits."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.number_formats.recipe import Recipe, reduced

MAX_LEVEL_BITS = 16  # more levels than 65 536 are not listed
MAX_ANCHOR = 1024.0  # of floats, which are equally fine over many octaves


class NumberFormat(NamedTuple):
    """Numbers of a few bits; every function is elementwise, for jit and vmap.

    Floats of any shape and dtype go in. Codes are the smallest integers that hold
    `bits`: bit patterns and places of levels unsigned, those of integers as they are.

    Attributes:
        name: of the format, `posit<8,2>` say.
        bits: of a code.
        range: the least and the greatest finite level; arrays where each channel has
            a scale of its own.
        encode: `x -> codes`, of the level that x rounds to.
        decode: `codes -> float32`, exactly; `decode(codes, jnp.float64)` for formats
            that have levels beyond float32.
        round: `x -> level`, in the dtype of x: `decode(encode(x))`, at less cost.
        neighbour: `(codes, direction) -> codes` of the next level up (direction 1) or
            down (-1), 0 for the same; at the ends of the range the same.
        levels: `() -> float64 [n]` of NumPy, the finite levels, ascending; raises
            `ValueError` for more than 16 bits.
        anchor: where default scales put the largest weight: the greatest magnitude at
            which levels are finest relative to their size; what is larger is rounded
            more coarsely, or clipped. Of integers and codebooks it is the end of the
            range (None stands for that), of posit<n,es> 2^(2^es), of floats the end or
            1024, if that is less.
        recipe: the call that makes the format again, so that it can be pickled; None
            where nobody said.
    """

    name: str
    bits: int
    range: tuple[Any, Any]
    encode: Callable[[jax.Array], jax.Array]
    decode: Callable[..., jax.Array]
    round: Callable[[jax.Array], jax.Array]
    neighbour: Callable[[jax.Array, jax.Array], jax.Array]
    levels: Callable[[], np.ndarray]
    anchor: Any = None
    recipe: Recipe | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The call that makes it: functions that are closures cannot be pickled."""
        return reduced(self)


def anchor_of(number_format: NumberFormat) -> Any:
    """The anchor, for formats without one of their own the greatest magnitude."""
    if number_format.anchor is not None:
        return number_format.anchor
    least, most = number_format.range
    return max(abs(least), abs(most))


def as_float(name: str, x: jax.Array) -> jax.Array:
    """An array of floats, or `ValueError`: integers would be rounded without a word."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floats, got {x.dtype} {x.shape}.")
    return x


def whole(name: str, value: Any) -> int:
    """An integer, also one of NumPy, or `ValueError`."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}.") from None


def cast(levels: jax.Array, dtype: Any) -> jax.Array:
    """Levels in a dtype; one beyond its greatest number becomes that, not infinite."""
    most = float(jnp.finfo(dtype).max)
    if most < float(jnp.finfo(levels.dtype).max):
        near = jnp.clip(levels, -most, most)
        levels = jnp.where(jnp.isinf(levels), levels, near)
    return levels.astype(dtype)


def code_dtype(bits: int) -> jnp.dtype:
    """The smallest unsigned integers that hold codes of `bits`."""
    return jnp.dtype(
        jnp.uint8 if bits <= 8 else jnp.uint16 if bits <= 16 else jnp.uint32
    )


def listed(name: str, bits: int, decode: Callable[..., jax.Array]) -> np.ndarray:
    """The finite levels of a format, ascending, each once."""
    if bits > MAX_LEVEL_BITS:
        raise ValueError(
            f"{name} has {2**bits} codes; levels are listed up to {MAX_LEVEL_BITS} "
            "bits."
        )
    with jax.ensure_compile_time_eval():
        codes = jnp.arange(2**bits, dtype=code_dtype(bits))
        values = np.asarray(jax.jit(decode)(codes))
    finite = values[np.isfinite(values)].astype(np.float64)
    return np.unique(finite)
