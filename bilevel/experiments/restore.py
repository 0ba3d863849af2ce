"""Restoring a checkpoint: every file and every leaf verified, nothing cast unasked.

How a step is read is passed in, `load_step(folder, targets)`: no Orbax in this file.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.datasets.manifest import DamagedFileError
from bilevel.experiments import digests, step_folder
from bilevel.experiments.digests import LeafRecord

Tree: TypeAlias = Any
LoadStep: TypeAlias = Callable[[Path, Any], Any]


class CheckpointError(ValueError):
    """A state cannot be saved, or a checkpoint is damaged or of another structure."""


class DamagedCheckpointError(CheckpointError):
    """What is stored is not what was saved."""


def restore_latest(
    load_step: LoadStep,
    directory: Path,
    steps: list[int],
    template: Tree,
    cast: bool,
) -> tuple[Tree, int]:
    """Restores the last step; if it is damaged, says which earlier one is intact.

    Args:
      load_step: `load_step(folder, targets)` of Orbax.
      directory: of the checkpoints.
      steps: what is saved there, in order.
      template: a state of the structure to restore into.
      cast: convert leaves of another dtype.

    Raises:
      CheckpointError: it is damaged, or does not fit the template.
    """
    *earlier, latest = steps
    try:
        return restore(load_step, directory / str(latest), template, cast), latest
    except DamagedCheckpointError as error:
        for step in reversed(earlier):
            with contextlib.suppress(DamagedCheckpointError):
                restore(load_step, directory / str(step), template, cast)
                raise CheckpointError(
                    f"{error}\nStep {step} is intact: resume from it with"
                    f" --restore_step={step} (in a notebook: open_run(...,"
                    f" restore_step={step})); later ones are set aside, not deleted"
                ) from error
        raise CheckpointError(f"{error}\nNo other step is intact") from error


@contextlib.contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Says what is wrong with the files of a step."""
    try:
        yield
    except step_folder.FormatError as error:
        raise CheckpointError(str(error)) from None
    except (DamagedFileError, OSError) as error:
        raise DamagedCheckpointError(
            f"checkpoint {folder} is damaged: {error}"
        ) from error


def restore(load_step: LoadStep, folder: Path, template: Tree, cast: bool) -> Tree:
    """Restores one step into the structure of a template, as `restore_named` does."""
    named = digests.named_leaves(template)
    found = restore_named(load_step, folder, named, cast)
    leaves = [found[name] for name in named]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def restore_named(
    load_step: LoadStep,
    folder: Path,
    named: Mapping[str, Any] | None = None,
    cast: bool = False,
) -> dict[str, jax.Array]:
    """Restores one step and verifies every file and leaf.

    Args:
      load_step: `load_step(folder, targets)` of Orbax.
      folder: of the step.
      named: templates of the leaves by name; None: what is stored.
      cast: convert leaves of another dtype.

    Returns:
      The leaves by name.

    Raises:
      CheckpointError: it is damaged, or does not fit the template.
    """
    with damage(folder):
        records = step_folder.read(folder).records
    if named is None:
        named = {name: _abstract(record) for name, record in records.items()}
    _check_template(records, named, folder, cast)
    targets = {name: _target(leaf, records[name]) for name, leaf in named.items()}
    try:
        loaded = load_step(folder, targets)
    except Exception as error:
        raise DamagedCheckpointError(
            f"checkpoint {folder} cannot be read ({root_cause(error)})"
        ) from error
    for name, record in records.items():
        if (found := digests.sha256(loaded[name])) != record.sha256:
            raise DamagedCheckpointError(
                f"checkpoint {folder} is damaged: leaf {name} has sha256 {found[:12]},"
                f" expected {record.sha256[:12]}"
            )
    return {name: _leaf(loaded[name], records[name], named[name]) for name in named}


def _check_template(
    records: Mapping[str, LeafRecord], named: Mapping[str, Any], path: Any, cast: bool
) -> None:
    """Compares structure, shapes and dtypes."""
    stored = {name: (one.dtype, list(one.shape)) for name, one in records.items()}
    given = {
        name: (digests.dtype_of(leaf), list(_data_type(leaf).shape))
        for name, leaf in named.items()
    }

    def fits(name: str) -> bool:
        one, other = stored.get(name), given.get(name)
        if (
            not cast
            or one is None
            or other is None
            or records[name].key
            or is_key(name)
        ):
            return one == other
        return one[1] == other[1]

    def is_key(name: str) -> bool:
        return bool(records[name].key) or digests.is_key(named[name])

    def shown(what: tuple[str, list[int]] | None) -> str:
        return "nothing" if what is None else f"{what[0]}{what[1]}"

    lines = [
        f"{name}: stored {shown(stored.get(name))}, template {shown(given.get(name))}"
        for name in sorted(stored.keys() | given.keys())
        if not fits(name)
    ]
    if lines:
        first = (
            f"checkpoint {path} does not fit the template (nothing is cast or left"
            " out); restore it with the configuration and JAX settings that saved it:"
        )
        raise CheckpointError("\n  ".join([first, *lines]))


def _data_type(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of what is stored for a leaf of the template."""
    return jax.eval_shape(digests.data_of, leaf)


def _target(leaf: Any, record: LeafRecord) -> Any:
    """Returns what Orbax restores a leaf into.

    A sharding where the template has one, else (the default device, not committed to
    it) NumPy: restored to a device, the array would be committed, and `jax.jit` would
    refuse to combine it with one on a mesh.
    """
    data = _data_type(leaf)
    # The stored dtype, so that the digest can be verified before a cast.
    dtype = data.dtype if record.key else np.dtype(record.dtype)
    sharding = _sharding(leaf)
    if sharding is None:
        return np.empty(data.shape, dtype)
    return jax.ShapeDtypeStruct(data.shape, dtype, sharding=sharding)


def _sharding(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return digests.data_of(leaf).sharding if leaf.committed else None
    return getattr(leaf, "sharding", None)


def _leaf(loaded: Any, record: LeafRecord, template: Any) -> jax.Array:
    # A copy: the array must own its memory, for it will be donated.
    is_numpy = isinstance(loaded, np.ndarray)
    if record.key:
        array = jnp.array(loaded, copy=True) if is_numpy else loaded
        return jax.random.wrap_key_data(array, impl=record.key)
    dtype = _data_type(template).dtype
    return jnp.array(loaded, dtype, copy=True) if is_numpy else loaded.astype(dtype)


def _abstract(record: LeafRecord) -> jax.ShapeDtypeStruct:
    """Returns a template of one leaf."""
    if not record.key:
        return jax.ShapeDtypeStruct(record.shape, np.dtype(record.dtype))
    data = jax.ShapeDtypeStruct(record.shape, np.uint32)
    return jax.eval_shape(lambda x: jax.random.wrap_key_data(x, impl=record.key), data)


def root_cause(error: BaseException) -> str:
    """Returns the first line of what an error began with; Orbax wraps it often."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = f"{type(error).__name__}: {error}".splitlines()
    return lines[0]
