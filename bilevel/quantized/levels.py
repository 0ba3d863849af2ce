"""The levels of a format as an array: nearest in value, gaps, boundaries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.number_formats import NumberFormat

FEW = 16  # up to so many a chain of comparisons is faster than a gather


class Levels(NamedTuple):
    """Levels in order, and what lies between them.

    A number belongs to the level nearest in value, which posits do not round to
    everywhere; one on a boundary to the level above.

    Attributes:
        values: `[n]`, ascending.
        boundaries: `[n - 1]`, the midpoints.
    """

    values: np.ndarray
    boundaries: np.ndarray

    def of_cell(self, x: jax.Array, table: np.ndarray) -> jax.Array:
        """`table[k]`, `[n]`, for numbers that are nearest to the level k; NaN stays."""
        if len(self.values) <= FEW:
            found = jnp.full_like(x, table[0])
            for boundary, entry in zip(self.boundaries, table[1:], strict=True):
                above = x >= jnp.asarray(boundary, x.dtype)
                found = jnp.where(above, jnp.asarray(entry, x.dtype), found)
        else:
            boundaries = jnp.asarray(self.boundaries, x.dtype)
            place = jnp.searchsorted(boundaries, x, side="right")
            found = jnp.asarray(table, x.dtype)[place]
        return jnp.where(jnp.isnan(x), x, found)

    def nearest(self, x: jax.Array) -> jax.Array:
        """The nearest level; NaN stays."""
        return self.of_cell(x, self.values)


def levels_of(number_format: NumberFormat, max_bits: int = 16) -> Levels:
    """The levels of a format without scale.

    Raises:
        ValueError: more bits; levels that are not in one row, or are less than two.
    """
    if number_format.bits > max_bits:
        raise ValueError(
            f"expected a format of at most {max_bits} bits, got {number_format.name} "
            f"of {number_format.bits}."
        )
    values = number_format.levels()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"{number_format.name}: expected two levels or more in one row, got the "
            f"shape {values.shape}; a scale for each channel is the quantiser's."
        )
    return Levels(values, values[1:] / 2 + values[:-1] / 2)


def ends_of(name: str, number_format: NumberFormat) -> tuple[float, float]:
    """The ends of the range, of a format without scales of its own."""
    least, most = number_format.range
    if isinstance(least, float | int) and isinstance(most, float | int):
        return float(least), float(most)
    raise ValueError(
        f"{name}: the format {number_format.name} has scales of its own; pass it "
        "without, the quantiser has one."
    )


def along_last(values: np.ndarray, x: jax.Array) -> jax.Array:
    """Values `[n]` to broadcast against `x[..., None]`."""
    return jnp.asarray(values, x.dtype).reshape((1,) * x.ndim + (-1,))
