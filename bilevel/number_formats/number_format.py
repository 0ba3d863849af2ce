"""What a number format is: finitely many numbers, each with a code of some bits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_LEVEL_BITS = 16  # more levels than 65 536 are not listed


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
    """

    name: str
    bits: int
    range: tuple[Any, Any]
    encode: Callable[[jax.Array], jax.Array]
    decode: Callable[..., jax.Array]
    round: Callable[[jax.Array], jax.Array]
    neighbour: Callable[[jax.Array, jax.Array], jax.Array]
    levels: Callable[[], np.ndarray]


def as_float(name: str, x: jax.Array) -> jax.Array:
    """An array of floats, or `ValueError`: integers would be rounded without a word."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floats, got {x.dtype} {x.shape}.")
    return x


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
