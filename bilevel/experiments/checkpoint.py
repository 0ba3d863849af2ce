"""Checkpoints of a pytree of arrays, verified leaf by leaf; the only user of Orbax.

A state is stored as one flat dictionary from the name of a leaf (`.inner['w']`) to its
array, so that Orbax sees neither our NamedTuples nor typed keys, and every question of
structure, shape and dtype is answered here, before anything is read. The metadata of a
step holds a record for each leaf: dtype, shape and sha256 of the bytes. Orbax itself
notices neither a flipped bit nor a template of another dtype (it casts).

Names: a *template* is a state of the structure, shapes, dtypes and devices to restore
into, usually the freshly initialised one; `jax.ShapeDtypeStruct` leaves will do.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.experiments import digests
from bilevel.experiments.digests import LeafRecord

Tree: TypeAlias = Any

_FORMAT = 1
_KEPT = 2  # the latest, and one to fall back to if that is damaged


class CheckpointError(ValueError):
    """A state cannot be saved, or a checkpoint is damaged or of another structure."""


class Checkpoints(NamedTuple):
    """The checkpoints of one run.

    Attributes:
      save: `save(step, state, force=False)` starts to store a state if a multiple of
        the interval was reached since the last one, or if forced; returns whether it
        did. When it returns, the state is copied: its buffers may be donated.
      restore: `restore(template)` returns `(state, step)` of the latest checkpoint, or
        None where there is none.
      wait: `wait()` returns when what was saved is on the disk, and raises what went
        wrong on the way.
    """

    save: Callable[..., bool]
    restore: Callable[[Tree], tuple[Tree, int] | None]
    wait: Callable[[], None]


@contextlib.contextmanager
def open_checkpoints(directory: Path, interval: int = 1) -> Iterator[Checkpoints]:
    """Opens the checkpoints in a folder; the last save is complete when it closes.

    What a killed process left half written is removed. The two latest steps are kept.

    Args:
      directory: the folder, one sub-folder a step; made if it is not there.
      interval: steps between two saves that are not forced.

    Yields:
      `Checkpoints`. Its `save` raises `CheckpointError` on leaves that cannot be stored
      and on a step that is not later than the last one; its `restore` on a damaged
      checkpoint, naming the leaf and the last step that is intact, and on a template
      that does not fit, naming every leaf that differs.

    Example:
      ```
      with open_checkpoints(Path("runs/a/ckpt"), interval=100) as checkpoints:
          checkpoints.save(100, state)
          state, step = checkpoints.restore(state)
      ```
    """
    opened = _lazy_checkpointer(directory)
    last_saved = latest_step(directory) or 0

    @_unchanged_logging()
    def wait() -> None:
        if opened.cache_info().currsize:
            opened().wait()

    @_unchanged_logging()
    def save(step: int, state: Tree, force: bool = False) -> bool:
        nonlocal last_saved
        if not force and not is_due(step, last_saved, interval):
            return False
        _save(opened(), step, state)
        last_saved = step
        return True

    @_unchanged_logging()
    def restore(template: Tree) -> tuple[Tree, int] | None:
        wait()
        is_empty = latest_step(directory) is None
        return None if is_empty else _restore_latest(opened(), template)

    try:
        yield Checkpoints(save, restore, wait)
    finally:
        with _unchanged_logging():
            if opened.cache_info().currsize:
                opened().close()


def is_due(step: int, last_saved: int, interval: int) -> bool:
    """Says whether a multiple of the interval was reached since the last save.

    Example:
      >>> is_due(96, 0, 100), is_due(128, 0, 100), is_due(160, 128, 100)
      (False, True, False)
    """
    # Orbax's own policy wants `step % interval == 0`; chunks of steps need not end
    # there, and then it would never save.
    return step // interval > last_saved // interval


def latest_step(directory: Path) -> int | None:
    """Returns the last complete step in a folder of checkpoints, without Orbax."""
    # Orbax writes under another name and renames.
    steps = [int(one.name) for one in directory.glob("*") if one.name.isdecimal()]
    return max(steps, default=None)


class _Damaged(Exception):
    """What is stored is not what was saved."""


@contextlib.contextmanager
def _unchanged_logging() -> Iterator[None]:
    """Removes the handler that Orbax leaves on the root logger.

    Its messages go through `absl.logging`, which gives a root logger without handlers
    one at every message, from whatever thread.
    """
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in [one for one in root.handlers if one not in before]:
            root.removeHandler(handler)


def _lazy_checkpointer(directory: Path) -> Any:
    """Returns a function that opens Orbax's checkpointer at its first call."""

    @functools.cache  # Orbax is slow to import, and not every run saves
    @_unchanged_logging()
    def opened() -> Any:
        from orbax.checkpoint import v1 as ocp

        training: Any = ocp.training  # its own annotations contradict one another
        return training.Checkpointer(
            directory.resolve(),
            preservation_policy=training.preservation_policies.LatestN(_KEPT),
            cleanup_tmp_directories=True,
        )

    return opened


def _save(checkpointer: Any, step: int, state: Tree) -> None:
    is_bare = not logging.getLogger().handlers
    records = digests.leaf_records(state)
    for name, record in records.items():
        if 0 in record.shape:
            raise CheckpointError(
                f"leaf {name} has shape {record.shape}: Orbax stores no empty arrays;"
                " leave it out of the state"
            )
    checkpointer.wait()  # one at a time; raises what went wrong with the last one
    latest = checkpointer.latest
    if latest is not None and latest.step >= step:
        if latest.step == step and _stored_records(checkpointer, step) == records:
            return  # the same state again
        raise CheckpointError(
            f"{checkpointer.directory} holds step {latest.step} already; step {step}"
            " cannot be saved after it"
        )
    leaves = digests.named_leaves(state).items()
    response = checkpointer.save_async(
        step,
        {name: digests.data_of(leaf) for name, leaf in leaves},
        force=True,
        custom_metadata={
            "format_version": _FORMAT,
            "leaves": {name: list(record) for name, record in records.items()},
        },
    )
    if is_bare:  # the writing thread, too, would leave a handler behind
        response.result()


def _restore_latest(checkpointer: Any, template: Tree) -> tuple[Tree, int]:
    *earlier, latest = [one.step for one in checkpointer.checkpoints]
    try:
        return _restore(checkpointer, latest, template), latest
    except _Damaged as error:
        fallback = _fallback(checkpointer, earlier, template)
        raise CheckpointError(f"{error}. {fallback}") from error


def _stored_records(checkpointer: Any, step: int) -> dict[str, LeafRecord]:
    try:
        stored = checkpointer.metadata(step).custom_metadata
        if stored is None:  # Orbax passes over damage here
            raise ValueError("no record of its leaves")
        if stored["format_version"] == _FORMAT:
            return {
                name: LeafRecord(dtype, tuple(shape), sha256, key)
                for name, (dtype, shape, sha256, key) in stored["leaves"].items()
            }
    except Exception as error:
        raise _unreadable(checkpointer, step, error) from error
    raise CheckpointError(
        f"checkpoint {checkpointer.directory / str(step)} has format"
        f" {stored['format_version']}; this version of bilevel reads {_FORMAT}"
    )


def _restore(checkpointer: Any, step: int, template: Tree) -> Tree:
    """Restores one step and verifies every leaf."""
    records = _stored_records(checkpointer, step)
    named = digests.named_leaves(template)
    path = checkpointer.directory / str(step)
    _check_template(records, named, path)
    targets = {name: _target(leaf) for name, leaf in named.items()}
    try:
        loaded = checkpointer.load(step, targets)
    except Exception as error:
        raise _unreadable(checkpointer, step, error) from error
    for name, record in records.items():
        if (found := digests.sha256(loaded[name])) != record.sha256:
            raise _Damaged(
                f"checkpoint {path} is damaged: leaf {name} has sha256 {found[:12]},"
                f" expected {record.sha256[:12]}"
            )
    leaves = [_leaf(loaded[name], records[name]) for name in named]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _check_template(
    records: Mapping[str, LeafRecord], named: Mapping[str, Any], path: Any
) -> None:
    """Compares structure, shapes and dtypes."""
    stored = {name: f"{one.dtype}{list(one.shape)}" for name, one in records.items()}
    given = {
        name: f"{digests.dtype_of(leaf)}{list(_data_type(leaf).shape)}"
        for name, leaf in named.items()
    }
    lines = [
        f"{name}: stored {stored.get(name, 'nothing')},"
        f" template {given.get(name, 'nothing')}"
        for name in sorted(stored.keys() | given.keys())
        if stored.get(name) != given.get(name)
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


def _target(leaf: Any) -> Any:
    """Returns what Orbax restores a leaf into.

    A sharding where the template has one, else (the default device, not committed to
    it) NumPy: restored to a device, the array would be committed, and `jax.jit` would
    refuse to combine it with one on a mesh.
    """
    sharding, data = _sharding(leaf), _data_type(leaf)
    if sharding is None:
        return np.empty(data.shape, data.dtype)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def _sharding(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return digests.data_of(leaf).sharding if leaf.committed else None
    return getattr(leaf, "sharding", None)


def _leaf(loaded: Any, record: LeafRecord) -> jax.Array:
    # A copy: the array must own its memory, for it will be donated.
    is_numpy = isinstance(loaded, np.ndarray)
    array = jnp.array(loaded, copy=True) if is_numpy else loaded
    return jax.random.wrap_key_data(array, impl=record.key) if record.key else array


def _unreadable(checkpointer: Any, step: int, error: BaseException) -> _Damaged:
    """Says why a step cannot be read; Orbax hides that in a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    path = checkpointer.directory / str(step)
    return _Damaged(f"checkpoint {path} cannot be read ({reason})")


def _fallback(checkpointer: Any, steps: list[int], template: Tree) -> str:
    """Says which earlier step is intact, and how to go on from it."""
    for step in reversed(steps):
        try:
            _restore(checkpointer, step, template)
        except (_Damaged, CheckpointError):
            continue
        return (
            f"Step {step} is intact: to resume from it, delete the later ones in"
            f" {checkpointer.directory}"
        )
    return "No other step is intact"
