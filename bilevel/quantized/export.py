"""What is deployed: integers and scales, and their size."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.known import known
from bilevel.number_formats import NumberFormat
from bilevel.quantized.quantizer import Codes, Quantizer
from bilevel.quantized.tree import (
    State,
    chosen_leaves,
    decoded,
    encoded,
    path_of,
    require_own,
)
from bilevel.trees import Tree

POWERS = np.dtype(jnp.float8_e8m0fnu)


class Exported(NamedTuple):
    """Quantised weights, offset + scale decode(codes), as arrays of NumPy.

    Attributes:
        codes: integers, of the shape of the weights.
        scale: broadcasts against them, or is one for each block of so many along an
            axis, a byte if they are powers of two; None for 1.
        offset: as the scale; None for 0.
        levels: `[n]`, by code, where they were learned; otherwise the format's.
        number_format: decodes the codes; None where the levels do, as they may in what
            was loaded.
        bits: of a code.
        dtype: of the weights.
    """

    codes: np.ndarray
    scale: np.ndarray | None
    offset: np.ndarray | None
    levels: np.ndarray | None
    number_format: NumberFormat | None
    bits: int
    dtype: Any

    def decode(self) -> jax.Array:
        """The weights, bit by bit those of `quantized.final`."""
        shape = self.codes.shape
        parts = (_spread(self.scale, shape), _spread(self.offset, shape), self.levels)
        given = [None if one is None else jnp.asarray(one) for one in parts]
        codes = Codes(jnp.asarray(self.codes), *given)
        return decoded(self.number_format, codes, self.dtype)

    @property
    def num_bits(self) -> int:
        """Codes packed without gaps, scale, offset and levels."""
        return self.codes.size * self.bits + 8 * self._num_float_bytes

    @property
    def num_bytes(self) -> int:
        """As `num_bits`, the codes up to a whole byte: what `Export.save` writes."""
        return -(-self.codes.size * self.bits // 8) + self._num_float_bytes

    @property
    def _num_float_bytes(self) -> int:
        floats = (self.scale, self.offset, self.levels)
        return sum(one.nbytes for one in floats if one is not None)


class Export(NamedTuple):
    """A model for deployment.

    Attributes:
        quantized: by path, as in `Dense_0/kernel`.
        rest: by path, the leaves that stay what they are, arrays of NumPy.
    """

    quantized: dict[str, Exported]
    rest: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Size of all, codes packed."""
        own = sum(x.num_bytes for x in self.quantized.values())
        return own + sum(size_of(leaf) for leaf in self.rest.values())

    def save(self, path: str | Path) -> None:
        """Writes it to one file, for `load_export`; see there what it holds.

        Args:
            path: of the file; one that is there is replaced once the new one is whole.

        Raises:
            ValueError: a format of your own of more than 8 bits, whose decoder cannot
                be written down.
        """
        from bilevel.quantized.stored import save  # which makes an Export

        save(self, Path(path))

    def params(self, like: Tree) -> Tree:
        """The weights in a tree, for inference.

        Args:
            like: a tree with the paths of the export, the latent weights, say.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, _: self._leaf(path_of(path)), like
        )

    def _leaf(self, path: str) -> jax.Array:
        if path in self.quantized:
            return self.quantized[path].decode()
        if path in self.rest:
            return jnp.asarray(self.rest[path])
        raise ValueError(
            f"the export has no leaf {path!r}; it has "
            f"{sorted([*self.quantized, *self.rest])}."
        )

    def __str__(self) -> str:
        """A line for each quantised leaf, and the sizes."""
        lines = [
            f"{path}: {x.codes.shape} {_name_of(x)}, scales: "
            f"{0 if x.scale is None else x.scale.size}, {x.num_bytes} bytes"
            for path, x in self.quantized.items()
        ]
        total = sum(x.codes.size for x in self.quantized.values())
        floats = 4 * total + sum(size_of(leaf) for leaf in self.rest.values())
        lines.append(f"{self.num_bytes} bytes; {floats} with float32 weights")
        return "\n".join(lines)


def export(
    quantizer: Quantizer,
    state: State,
    latent: Tree,
    *others: tuple[Quantizer, State],
) -> Export:
    """Integers and scales of the final weights; not for use inside of jit.

    Args:
        quantizer: as in `quantized.init`.
        state: with the scales that were learned.
        latent: the latent weights.
        others: more quantisers of the same tree, each with its state.

    Returns:
        An `Export`: `export(...).params(latent)` equals `final(...)`, bit by bit.

    Raises:
        ValueError: latent weights or scales that are not finite; a scale that is not
            positive; traced values; the state of another quantiser.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized import init, scales, ste
        >>> q = ste(number_formats.symmetric(4), scale=scales.max_abs)
        >>> latent, state = init(q, {"kernel": jnp.array([[0.7, -0.2]])})
        >>> made = export(q, state, latent).quantized["kernel"]
        >>> made.codes.tolist(), round(float(made.scale), 3)
        ([[7, -2]], 0.1)
    """
    found = {}
    for own, known_of in ((quantizer, state), *others):
        require_own(own, known_of)
        for path, leaf in chosen_leaves(known_of, latent).items():
            found[path] = coded(own, path, leaf, known_of.learned[path])
            _require_numbers(path, leaf, found[path])
    rest = {
        path_of(path): leaf if _is_key(leaf) else np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(latent)
        if path_of(path) not in found
    }
    return Export(found, rest)


def coded(own: Quantizer, path: str, leaf: jax.Array, learned: Tree) -> Exported:
    """One leaf of an export, not yet checked."""
    if known(leaf) is None:
        raise ValueError(f"export: {path} is traced; call it outside of jit.")
    codes = encoded(own, jnp.asarray(leaf), learned)
    return Exported(
        np.asarray(codes.codes),
        _gathered(codes.scale, codes.codes.shape),
        _gathered(codes.offset, codes.codes.shape),
        None if codes.levels is None else np.asarray(codes.levels),
        own.number_format,
        own.number_format.bits,
        jnp.asarray(leaf).dtype,
    )


def size_of(leaf: Any) -> int:
    """In bytes; keys, which inference has no use for, are not counted."""
    if _is_key(leaf):
        return 0
    return int(np.prod(jnp.shape(leaf))) * jnp.result_type(leaf).itemsize


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _name_of(made: Exported) -> str:
    if made.number_format is None:
        return f"levels of {made.bits} bits"
    return made.number_format.name


def _gathered(given: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """One entry for each block, where a scale was spread over the weights."""
    if given is None:
        return None
    found = np.asarray(given)
    if found.shape != shape or found.size <= 1:
        return found
    for axis, length in enumerate(shape):
        before, after = (
            np.take(found, range(start, length - 1 + start), axis) for start in (0, 1)
        )
        other = tuple(k for k in range(found.ndim) if k != axis)
        changes = 1 + np.flatnonzero(np.any(before != after, other))
        block = math.gcd(length, *map(int, changes))
        found = np.take(found, range(0, length, block), axis)
    # Powers of two need no more than their exponent.
    is_power = np.all(np.isfinite(found) & (np.frexp(np.abs(found))[0] == 0.5))
    if is_power and np.all((found >= 2.0**-126) & (found <= 2.0**127)):
        return found.astype(POWERS)
    return found


def _spread(given: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """An entry for each weight, where there are blocks; others broadcast."""
    if given is None or given.ndim != len(shape):
        return given
    if given.dtype == POWERS:
        given = given.astype(np.float32)
    for axis, length in enumerate(shape):
        count = given.shape[axis]
        if count not in (1, length):
            given = np.repeat(given, length // count, axis)
    return given


def _require_numbers(path: str, latent: jax.Array, made: Exported) -> None:
    values = np.asarray(latent, np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"export: {path} has {np.sum(~np.isfinite(values))} latent weights that "
            "are not finite, and have no code."
        )
    scale = np.asarray(1 if made.scale is None else made.scale).astype(np.float64)
    if not np.all((scale > 0) & np.isfinite(scale)):
        raise ValueError(
            f"export: the scale of {path} must be positive and finite, got "
            f"{scale.min()} to {scale.max()}; if it is learned, take a smaller "
            "learning rate for it."
        )
    weights = np.asarray(made.decode(), np.float64)
    if not np.all(np.isfinite(weights)):
        raise ValueError(
            f"export: {np.sum(~np.isfinite(weights))} weights of {path} are not "
            f"finite: {_name_of(made)} has no level for them (take "
            "saturating=True, or a larger scale), or a learned offset or level is none."
        )
