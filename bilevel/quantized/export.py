"""What is deployed: integers and scales, and their size."""

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
)
from bilevel.trees import Tree


class Exported(NamedTuple):
    """Quantised weights, offset + scale decode(codes), as arrays of NumPy.

    Attributes:
        codes: integers, of the shape of the weights.
        scale: broadcasts against them.
        offset: broadcasts against them.
        levels: `[n]`, by code, where they were learned; otherwise the format's.
        number_format: decodes the codes.
        dtype: of the weights.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    levels: np.ndarray | None
    number_format: NumberFormat
    dtype: Any

    def decode(self) -> jax.Array:
        """The weights, bit by bit those of `quantized.final`."""
        codes = Codes(
            jnp.asarray(self.codes),
            jnp.asarray(self.scale),
            jnp.asarray(self.offset),
            None if self.levels is None else jnp.asarray(self.levels),
        )
        return decoded(self.number_format, codes, self.dtype)

    @property
    def num_bits(self) -> int:
        """Codes packed without gaps, scale, offset (if there is one) and levels."""
        extras = [self.levels]
        extras += [self.scale] if np.any(self.scale != 1) else []
        extras += [self.offset] if np.any(self.offset) else []
        floats = sum(x.size * x.dtype.itemsize for x in extras if x is not None)
        return self.codes.size * self.number_format.bits + 8 * floats


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
        bits = sum(x.num_bits for x in self.quantized.values())
        return -(-bits // 8) + _size_of(self.rest)

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
            f"{path}: {x.codes.shape} {x.number_format.name}, scales: {x.scale.size}, "
            f"{x.num_bits / 8:.0f} bytes"
            for path, x in self.quantized.items()
        ]
        total = sum(x.codes.size for x in self.quantized.values())
        floats = 4 * total + _size_of(self.rest)
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
            positive; traced values.

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
        for path, leaf in chosen_leaves(known_of, latent).items():
            found[path] = _exported(own, path, leaf, known_of.learned[path])
    rest = {
        path_of(path): leaf if _is_key(leaf) else np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(latent)
        if path_of(path) not in found
    }
    return Export(found, rest)


def _exported(own: Quantizer, path: str, leaf: jax.Array, learned: Tree) -> Exported:
    if known(leaf) is None:
        raise ValueError(f"export: {path} is traced; call it outside of jit.")
    codes = encoded(own, jnp.asarray(leaf), learned)
    made = Exported(
        np.asarray(codes.codes),
        np.asarray(codes.scale),
        np.asarray(codes.offset),
        None if codes.levels is None else np.asarray(codes.levels),
        own.number_format,
        jnp.asarray(leaf).dtype,
    )
    _require_numbers(path, leaf, made)
    return made


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _size_of(rest: dict[str, Any]) -> int:
    """In bytes; keys, which inference has no use for, are not counted."""
    return sum(x.nbytes for x in rest.values() if isinstance(x, np.ndarray))


def _require_numbers(path: str, latent: jax.Array, made: Exported) -> None:
    values = np.asarray(latent, np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"export: {path} has {np.sum(~np.isfinite(values))} latent weights that "
            "are not finite, and have no code."
        )
    scale = made.scale.astype(np.float64)
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
            f"finite: {made.number_format.name} has no level for them (take "
            "saturating=True, or a larger scale), or a learned offset or level is none."
        )
