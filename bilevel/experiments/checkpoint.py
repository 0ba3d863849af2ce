"""Checkpoints of a pytree of arrays, verified; the only user of Orbax.

A state is stored as one flat dictionary from the name of a leaf (`.inner['w']`) to its
array, so that Orbax sees neither our NamedTuples nor typed keys, and every question of
structure, shape and dtype is answered here, before anything is read. Orbax itself
notices neither a flipped bit nor a template of another dtype (it casts): `step_folder`
seals every step with the sha256 of its files and leaves, and both are verified.

Names: a *template* is a state of the structure, shapes, dtypes and devices to restore
into, usually the freshly initialised one; `jax.ShapeDtypeStruct` leaves will do.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from bilevel.experiments import (
    digests,
    interrupts,
    messages,
    metrics,
    restore,
    set_aside,
    step_folder,
)
from bilevel.experiments.digests import LeafRecord
from bilevel.experiments.restore import CheckpointError

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "load",
    "open_checkpoints",
]

Tree: TypeAlias = Any

_KEPT = 2  # the latest, and one to fall back to if that is damaged
_MARK = {"written_by": "bilevel"}  # so that no folder of others is ever removed


class Save(Protocol):
    """Type of `Checkpoints.save`."""

    def __call__(
        self, step: int, state: Tree, *, force: bool = False, metric: Any = None
    ) -> str:
        """Saves the state if the step is due, and returns its digest or ''."""
        ...


class Restore(Protocol):
    """Type of `Checkpoints.restore`."""

    def __call__(
        self, template: Tree, *, step: int | None = None, cast: bool = False
    ) -> tuple[Tree, int] | None:
        """Returns `(state, step)`, or None."""
        ...


class Checkpoints(NamedTuple):
    """The checkpoints of one run.

    Attributes:
      save: `save(step, state, force=False, metric=None)` starts to store a state if
        one is due, or if forced; returns the digest of the state, or '' if it did not
        (it is not due, or saved already).
        When it returns, the state is copied: its buffers may be donated. `metric` is a
        number, lower is better.
      restore: `restore(template, step=None, cast=False)` returns `(state, step)` of the
        latest checkpoint, or of the one asked for; None where there is none. With
        `cast` a leaf of another dtype is converted to that of the template.
      wait: `wait()` returns when what was saved is on the disk, and raises what went
        wrong on the way.
    """

    save: Save
    restore: Restore
    wait: Callable[[], None]


@contextlib.contextmanager
def open_checkpoints(
    directory: Path,
    interval: int = 1,
    *,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    link: Callable[[int, str], step_folder.Links | None] = lambda step, digest: None,
    say: set_aside.Say = messages.say,
    is_read_only: bool = False,
) -> Iterator[Checkpoints]:
    """Opens the checkpoints in a folder; the last save is complete when it closes.

    Kept are the two latest steps, step 0, and the step with the lowest metric. Files
    that Orbax had not finished when the process was killed (`*.orbax-checkpoint-tmp`)
    are removed. A step without its seal is set aside in `<folder>-set-aside`, and so
    is, before anything is saved, an earlier step of which a small file is damaged,
    which Orbax would stumble over.

    Args:
      directory: the folder, one sub-folder a step; made if it is not there. One
        process at a time may write to it.
      interval: a save is due if a multiple of it was reached since the last one,
      seconds: or if so many seconds have passed since then.
      clock: seconds, for tests.
      link: `link(step, digest)` is called before a save; returns what is to be stored
        with the step.
      say: is told what was set aside.
      is_read_only: nothing in the folder is changed.

    Yields:
      `Checkpoints`. Its `save` raises `CheckpointError` on leaves that cannot be
      stored, on a step that is not later than the last one, and when the disk refuses;
      its `restore` on a damaged checkpoint, naming the file and the last step that is
      intact, and on a template that does not fit, naming every leaf that differs.

    Example:
      ```
      with open_checkpoints(Path("runs/a/ckpt"), interval=100) as checkpoints:
          checkpoints.save(100, state)
          state, step = checkpoints.restore(state)
      ```
    """
    if not is_read_only:
        set_aside.unsealed(directory, _MARK["written_by"], say)
    opened = _lazy_checkpointer(directory, say)
    pending: list[Future[None]] = []
    last_saved, last_time = step_folder.latest_step(directory) or 0, clock()

    @_orbax_at_work()
    def wait() -> None:
        while pending:
            _result(pending.pop(), directory)

    @_orbax_at_work()
    def save(step: int, state: Tree, *, force: bool = False, metric: Any = None) -> str:
        nonlocal last_saved, last_time
        is_late = seconds is not None and clock() - last_time >= seconds
        step = metrics.as_step(step)
        if not (force or is_late or is_due(step, last_saved, interval)):
            return ""
        wait()  # one at a time; raises what went wrong with the last one
        number = step_folder.as_metric(metric)
        records = _storable_records(state)
        last_saved, last_time = step, clock()
        if _is_saved(directory, step, records):
            return ""
        if is_read_only:
            raise CheckpointError(f"{directory} is open for reading only")
        digest = digests.digest_of(records)
        links = link(step, digest)
        start = functools.partial(_start_save, opened, executor, directory)
        pending.extend(start(step, state, records, number, links))
        return digest

    @_orbax_at_work()
    def restore_step(
        template: Tree, *, step: int | None = None, cast: bool = False
    ) -> tuple[Tree, int] | None:
        wait()
        found = step_folder.steps(directory)
        if step is not None and step not in found:
            raise CheckpointError(
                f"{directory} holds no step {step}; there are {_listed(found)}"
            )
        if not found:
            return None
        if step is not None:
            return restore.restore(
                _load_step, directory / str(step), template, cast
            ), step
        return restore.restore_latest(_load_step, directory, found, template, cast)

    @_orbax_at_work()
    def close() -> None:
        with _disk_errors(directory):
            try:
                wait()
            finally:
                if opened.cache_info().currsize:
                    opened().close()

    # The thread waits for Orbax and seals the step.
    with ThreadPoolExecutor(1, "bilevel-checkpoint") as executor:
        try:
            yield Checkpoints(save, restore_step, wait)
        finally:
            close()


def load(directory: Path, template: Tree = None, step: int | None = None) -> Tree:
    """Reads a state; nothing in the folder changes.

    Args:
      directory: the folder of the checkpoints.
      template: see above; without one the result is a dictionary from the name of a
        leaf to its array.
      step: which one, default the last.

    Raises:
      CheckpointError: there is none, it is damaged, or it does not fit the template.
    """
    steps = step_folder.steps(directory)
    chosen = max(steps, default=None) if step is None else step
    if chosen is None or chosen not in steps:
        asked = "no checkpoint" if chosen is None else f"no step {chosen}"
        raise CheckpointError(f"{directory} holds {asked}; there are {_listed(steps)}")
    folder = directory / str(chosen)
    with _unchanged_logging():
        if template is None:
            return restore.restore_named(_load_step, folder)
        return restore.restore(_load_step, folder, template, cast=False)


def _load_step(folder: Path, targets: Any) -> Any:
    from orbax.checkpoint import v1

    ocp: Any = v1  # its own annotations contradict one another
    return ocp.load(folder.resolve(), targets, checkpointable_name="state")


def is_due(step: int, last_saved: int, interval: int) -> bool:
    """Says whether a multiple of the interval was reached since the last save.

    Example:
      >>> is_due(96, 0, 100), is_due(128, 0, 100), is_due(160, 128, 100)
      (False, True, False)
    """
    # Orbax's own policy wants `step % interval == 0`; chunks of steps need not end
    # there, and then it would never save.
    return step // interval > last_saved // interval


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


@contextlib.contextmanager
def _orbax_at_work() -> Iterator[None]:
    with interrupts.held_back(), _unchanged_logging():
        yield


def _lazy_checkpointer(directory: Path, say: set_aside.Say) -> Any:
    """Returns a function that opens Orbax, for saving, at its first call."""

    @functools.cache  # Orbax is slow to import, and not every run saves
    @_unchanged_logging()
    def opened() -> Any:
        set_aside.damaged(directory, say)
        from orbax.checkpoint import v1 as ocp

        training: Any = ocp.training  # its own annotations contradict one another
        policies = training.preservation_policies
        lowest = policies.BestN(
            get_metric_fn=lambda metrics: metrics["metric"],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        kept = [policies.LatestN(_KEPT), policies.CustomSteps([0]), lowest]
        return training.Checkpointer(
            directory.resolve(),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )

    return opened


def _storable_records(state: Tree) -> dict[str, LeafRecord]:
    records = digests.leaf_records(state)
    for name, record in records.items():
        if 0 in record.shape:
            raise CheckpointError(
                f"leaf {name} has shape {record.shape}: Orbax stores no empty arrays;"
                " leave it out of the state"
            )
    return records


def _is_saved(directory: Path, step: int, records: Mapping[str, LeafRecord]) -> bool:
    """Says whether a step holds this very state."""
    latest = step_folder.latest_step(directory)
    if latest is None or latest < step:
        return False
    if latest == step and step_folder.read(directory / str(step)).records == records:
        return True
    raise CheckpointError(
        f"{directory} holds step {latest} already; step {step} cannot be saved after it"
    )


def _start_save(
    opened: Callable[[], Any],
    executor: ThreadPoolExecutor,
    directory: Path,
    step: int,
    state: Tree,
    records: Mapping[str, LeafRecord],
    metric: float | None,
    links: step_folder.Links | None,
) -> list[Future[None]]:
    """Starts a save; returns what to wait for."""
    is_bare = not logging.getLogger().handlers
    leaves = digests.named_leaves(state).items()

    def seal(response: Any) -> None:
        response.result()
        step_folder.seal(directory / str(step), records, metric, links)

    with _disk_errors(directory):
        response = opened().save_async(
            step,
            {name: digests.data_of(leaf) for name, leaf in leaves},
            force=True,
            metrics=None if metric is None else {"metric": metric},
            custom_metadata=_MARK,
        )
    sealed = executor.submit(seal, response)
    if is_bare:  # the writing thread, too, would leave a handler behind
        _result(sealed, directory)
        return []
    return [sealed]


def _result(pending: Future[None], directory: Path) -> None:
    with _disk_errors(directory):
        pending.result()


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Says what Orbax hides in a chain of causes, and what is still there."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        last = step_folder.latest_step(directory)
        rest = "no step is saved" if last is None else f"step {last} is saved"
        raise CheckpointError(
            f"cannot save to {directory} ({restore.root_cause(error)}); {rest}."
            " Mend that and run the same command to go on from there"
        ) from error


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
