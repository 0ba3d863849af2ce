"""Identity of a state: dtype, shape and sha256 of every leaf, by the leaf's name.

The name of a leaf is its path in the tree, `.inner['w']`. Leaves are seen as `jax.jit`
sees them (NumPy arrays and Python numbers as JAX arrays), typed keys as their data.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bilevel.datasets.manifest import sha256

__all__ = [
    "LeafRecord",
    "digest",
    "leaf_records",
]

Tree: TypeAlias = Any


class LeafRecord(NamedTuple):
    """What is recorded of a leaf.

    Attributes:
      dtype: of the leaf; of a typed key 'key<fry>'.
      shape: of the leaf; of a typed key the shape of its data.
      sha256: of the bytes in row-major order.
      key: the implementation of a typed key, 'threefry2x32'; '' for an array.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    key: str = ""


def leaf_records(state: Tree) -> dict[str, LeafRecord]:
    """Returns `{name of the leaf: LeafRecord}`.

    Cost: one copy of the state to the host, and 0.1 s per 100 MB.

    Args:
      state: a pytree of arrays and typed keys, all of it on devices of this process.

    Raises:
      ValueError: a leaf is no array, or is spread over several processes.

    Example:
      >>> leaf_records({"w": jnp.zeros(3, jnp.float32)})["['w']"].shape
      (3,)
    """
    return {name: _record(name, leaf) for name, leaf in named_leaves(state).items()}


def digest(state: Tree) -> str:
    """Returns one sha256 for a whole state: equal names and bits, equal digest.

    Args:
      state: as for `leaf_records`, which also says what is raised.

    Example:
      >>> digest({"w": jnp.zeros(3)}) == digest({"w": jnp.zeros(3)})
      True
    """
    return digest_of(leaf_records(state))


def digest_of(records: Mapping[str, LeafRecord]) -> str:
    """Returns the digest of a state whose leaves have these records."""
    lines = [repr((name, *record)) for name, record in sorted(records.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Returns the leaves by name, in the order of `jax.tree.leaves`.

    Raises:
      ValueError: two leaves have one name.
    """
    leaves, _ = jax.tree.flatten_with_path(tree)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two leaves of the state have the same path")
    return named


def is_key(leaf: Any) -> bool:
    """Says whether a leaf is a typed key (or an array of them)."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def data_of(leaf: Any) -> jax.Array:
    """Returns the leaf as a JAX array; of a typed key its data."""
    return jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf)


def dtype_of(leaf: Any) -> str:
    """Returns the name of the dtype that the leaf has under `jax.jit`."""
    return str(leaf.dtype if is_key(leaf) else jnp.result_type(leaf))


def _record(name: str, leaf: Any) -> LeafRecord:
    try:
        data = data_of(leaf)
    except (TypeError, ValueError):
        raise ValueError(
            f"leaf {name} is a {type(leaf).__name__}; a state holds arrays and keys"
        ) from None
    if not data.is_fully_addressable:
        raise ValueError(
            f"leaf {name} is spread over several processes; no single one can compute"
            " its digest"
        )
    key = str(jax.random.key_impl(leaf)) if is_key(leaf) else ""
    return LeafRecord(dtype_of(leaf), data.shape, sha256(data), key)
