"""A power of two for each block of weights: the shared scales of microscaling."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.floats import power_below

Rounding = Literal["floor", "ceil"]


@dataclass(frozen=True)
class OfBlocks:
    """Powers of two for blocks of weights, see `of_blocks`.

    Attributes:
        size: weights in a block.
        axis: along which they lie.
        rounding: of the scale.
    """

    size: int
    axis: int
    rounding: Rounding

    def __call__(self, number_format: NumberFormat, weights: jax.Array) -> jax.Array:
        """The scale of each weight; those of a block are equal."""
        shape = weights.shape
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"of_blocks: {shape} has no axis {self.axis}.")
        axis = self.axis % len(shape)
        if shape[axis] % self.size:
            raise ValueError(
                f"of_blocks: blocks of {self.size} do not divide the axis {axis} of "
                f"the shape {shape}; take another size or axis, or leave the weights "
                "out of `where`."
            )
        counts = (shape[axis] // self.size, self.size)
        blocks = weights.reshape(*shape[:axis], *counts, *shape[axis + 1 :])
        wide = jnp.abs(blocks).astype(jnp.promote_types(weights.dtype, jnp.float32))
        largest = jnp.max(wide, axis + 1, keepdims=True, initial=0.0)
        scale = self._power(number_format, largest)
        return jnp.broadcast_to(scale, blocks.shape).reshape(shape)

    def _power(self, number_format: NumberFormat, largest: jax.Array) -> jax.Array:
        most = jnp.asarray(max(abs(end) for end in number_format.range), largest.dtype)
        if self.rounding == "floor":
            found = power_below(largest) / power_below(most)
        else:
            found = power_below(largest / most)
            found = jnp.where(found * most < largest, 2 * found, found)
        # Of nothing 1; the others within float8_e8m0fnu, and normal.
        found = jnp.clip(found, 2.0**-120, 2.0**120)
        return jnp.where(largest > 0, found, 1)


def of_blocks(size: int = 32, axis: int = -2, rounding: Rounding = "floor") -> OfBlocks:
    """A power of two for each block of so many weights along an axis (microscaling).

        floor   2^(floor(log2 max |w|) - floor(log2 max |level|))
        ceil    the least power of two of which no weight is beyond the range

    With float4_e2m1fn it is MXFP4, with float8_e4m3fn (`saturating=True`, as the
    standard has it) MXFP8. An export keeps one byte for each block.

    Args:
        size: of a block; the standard's is 32.
        axis: along which blocks lie: the inputs, of kernels `[..., in, out]`.
        rounding: "floor" is the standard's, and clips the largest weights of some
            blocks; "ceil" clips none.

    Raises:
        ValueError: a size below 1, a rounding that is none; (when applied) a size that
            does not divide the axis.

    Source: Open Compute Project 2023, "Microscaling Formats (MX) Specification" 1.0,
    section 6.3; Rouhani et al. 2023, arXiv:2310.10537.

    Example:
        >>> from bilevel import number_formats
        >>> scale = of_blocks(2, axis=0)
        >>> w = jnp.array([3.0, 0.5, 0.1, 0.2])
        >>> scale(number_formats.by_name("float4_e2m1fn"), w).tolist()
        [0.5, 0.5, 0.03125, 0.03125]
    """
    if not (isinstance(size, int) and size >= 1):
        raise ValueError(f"of_blocks: size must be an integer >= 1, got {size!r}.")
    if rounding not in get_args(Rounding):
        raise ValueError(
            f'of_blocks: rounding must be "floor" or "ceil", got {rounding!r}.'
        )
    return OfBlocks(size, axis, rounding)
