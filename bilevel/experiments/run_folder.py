"""The folder of one run: plain files, to be zipped and sent.

    runs/<name>/
      config.json, config.py.txt   see `folders`
      starts/<n>/       command, environment and source of every start, see `starts`
      data.json         shape, dtype and sha256 of the arrays that were used
      metrics.jsonl     one JSON line for each `run.log`, flushed each time
      digests.jsonl     the sha256 of every state that was saved
      log.txt           messages, warnings, errors
      ckpt/<step>/      the state, see `checkpoint`
      figures/          curves of the metrics, and what the program draws
      summary.json      written last; a folder without it is of an unfinished run

The same command in the same folder resumes. After `kill -9` the folder is whole: files
are replaced in one step, and a broken last line of the metrics is dropped.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

from bilevel.datasets import files, manifest
from bilevel.experiments import (
    checkpoint,
    digests,
    folders,
    interrupts,
    journal,
    metrics,
    rescue,
    step_folder,
)
from bilevel.experiments.folders import CHECKPOINTS, DATA, DIGESTS, METRICS, FolderError

Tree: TypeAlias = Any


class Log(Protocol):
    """Type of `Run.log`."""

    def __call__(self, step: int, **metrics: Any) -> None:
        """Writes one line of metrics."""
        ...


class Save(Protocol):
    """Type of `Run.save`."""

    def __call__(
        self, step: int, state: Tree, *, force: bool = False, metric: Any = None
    ) -> bool:
        """Saves the state if the step is due."""
        ...


class RecordData(Protocol):
    """Type of `Run.record_data`."""

    def __call__(self, *, split_seed: int | None = None, **arrays: Tree) -> None:
        """Records which data are used."""
        ...


class Restore(Protocol):
    """Type of `Run.restore`."""

    def __call__(
        self, template: Tree, *, cast: bool = False
    ) -> tuple[Tree, int] | None:
        """Returns the last state and its step, or None."""
        ...


class Run(NamedTuple):
    """What a program needs of the folder of its run.

    Attributes:
      directory: the folder.
      data_dir: the folder of the data sets, or None.
      log: `log(step, loss=0.5, solver="cg")` writes one line of metrics. Values are
        numbers (arrays too), strings, bools or None. NaN and the infinities, which JSON
        lacks, become the strings 'NaN', 'Infinity' and '-Infinity' (`load_run` reads
        them back). `time`, the seconds of training, is added. A metric whose name ends
        in 'seconds' is taken as a time, which no repetition can reproduce.
      save: `save(step, state, force=False, metric=None)` saves the state if a multiple
        of `save_every` was reached since the last save, or `save_seconds` have passed,
        or if forced; returns whether it did. It may return before the files are
        complete; the buffers of the state may be donated at once. The state with the
        lowest `metric` is kept, beside the first, and the two latest.
      restore: `restore(template, cast=False)` returns `(state, step)` of the last
        checkpoint, or None in a new folder, whose first checkpoint, step 0, it makes of
        the template. Metrics of later steps are dropped: they will come again (those of
        a finished run stay).
      metrics: `metrics()` returns the lines that were logged, one dictionary each.
      record_data: `record_data(split_seed=3, train=examples)` records name, shape,
        dtype and sha256 of arrays (any pytree); on resume it refuses others.
      finish: `finish(summary)` writes summary.json; the run counts as finished. What is
        named `...seconds` is taken as a time here, too.
      path: `path("figures/loss.pdf")` returns a path in the folder and makes the
        folders above it.
    """

    directory: Path
    data_dir: Path | None
    log: Log
    save: Save
    restore: Restore
    metrics: Callable[[], list[dict[str, Any]]]
    record_data: RecordData
    finish: Callable[[Mapping[str, Any]], None]
    path: Callable[[str], Path]


@contextlib.contextmanager
def open_run(
    directory: str | Path,
    *,
    save_every: int = 1000,
    save_seconds: float | None = 20.0,
    save_steps: Collection[int] | None = None,
    restore_step: int | None = None,
    stop_after: int | None = None,
    data_dir: str | Path | None = None,
) -> Iterator[Run]:
    """Opens a folder for a program or a notebook; saves are complete when it closes.

    Args:
      directory: an existing folder (see `folders.claim`).
      save_every: steps between checkpoints.
      save_seconds: at most so many seconds between checkpoints; None for no limit.
      save_steps: save at these steps and no others.
      restore_step: restore this step; later ones are set aside.
      stop_after: the last step to log or save; then `StoppedAfter` is raised.
      data_dir: passed on as `run.data_dir`.

    Yields:
      `Run`. Its functions raise `RuntimeError` if a folder with a checkpoint is written
      to before `restore` was called, `MetricsError` on a metric or summary that is no
      JSON, `CheckpointError` as `open_checkpoints` says, and `FolderError` when the
      disk refuses, or the folder was deleted: then `save` has put it back with the
      state that it was given, so that no training is lost.

    Raises:
      FolderError: another process writes to the folder.

    Example:
      ```
      with open_run("runs/a") as run:
          restored = run.restore(state)
          state, step = restored or (state, 0)
          run.log(step, loss=0.5)
      ```
    """
    directory = Path(directory).absolute()
    folder = directory / CHECKPOINTS

    def log(step: int, **values: Any) -> None:
        lines.require(int(step))
        lines.append(METRICS, int(step), values)

    @interrupts.held_back()  # a state that is saved has its digest, too
    def save(
        step: int, state: Tree, *, force: bool = False, metric: Any = None
    ) -> bool:
        step = int(step)
        lines.require(step)
        if save_steps is not None and step not in save_steps and is_held():
            return False
        is_forced = force or save_steps is not None
        with put_back_if_deleted(checkpoints, step, state):
            digest = checkpoints.save(step, state, force=is_forced, metric=metric)
        if digest:
            lines.append(DIGESTS, step, {"sha256": digest})
        return bool(digest)

    @interrupts.held_back()
    def restore(template: Tree, *, cast: bool = False) -> tuple[Tree, int] | None:
        restored = checkpoints.restore(template, cast=cast)
        lines.begin(None if restored is None else restored[1])
        if restored is None and not _is_abstract(template):
            save(0, template, force=True)
        return restored

    def logged() -> list[dict[str, Any]]:
        return metrics.read(directory / METRICS)

    def record_data(*, split_seed: int | None = None, **arrays: Tree) -> None:
        if not is_held():
            raise FolderError(rescue.deleted(directory, memory.put_back()))
        with folders.folder_errors(directory):
            _record_data(directory / DATA, arrays, split_seed)
            memory.take()

    @interrupts.held_back()
    def finish(summary: Mapping[str, Any]) -> None:
        result = metrics.plain(summary, "summary")
        (checkpoints.wait if is_held() else checkpoints.abandon)()
        target = directory if is_held() else memory.put_back()
        _write_summary(target, result, lines.seconds())
        if not is_held():
            told = rescue.deleted(directory, target)
            raise FolderError(f"{told}, with metrics and summary; the states are lost")

    with (
        folders.locked(directory) as is_held,
        rescue.remembered(directory) as memory,
    ):
        lines = journal.start(directory, memory, is_held, stop_after)
        put_back_if_deleted = functools.partial(
            rescue.put_back_if_deleted, directory, is_held, memory, lines.seconds
        )
        with folders.folder_errors(directory):
            memory.take()
        if restore_step is not None:
            _go_back(folder, restore_step)
        with (
            checkpoint.open_checkpoints(
                folder, save_every, seconds=save_seconds
            ) as checkpoints,
            rescue.put_back_at_the_end(directory, is_held, memory, checkpoints),
        ):
            yield Run(
                directory=directory,
                data_dir=None if data_dir is None else Path(data_dir),
                log=log,
                save=save,
                restore=restore,
                metrics=logged,
                record_data=record_data,
                finish=finish,
                path=functools.partial(_path, directory),
            )


def _path(directory: Path, name: str) -> Path:
    with folders.folder_errors(directory):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
    return directory / name


def _go_back(folder: Path, step: int) -> None:
    """Makes an earlier step the latest, if it is intact."""
    if step not in step_folder.steps(folder):
        raise FolderError(
            f"{folder} holds no step {step}; there are {step_folder.steps(folder)}"
        )
    try:
        step_folder.read(folder / str(step))
    except manifest.DamagedFileError as error:
        raise FolderError(f"step {step} is damaged too: {error}") from error
    step_folder.set_aside(folder, step)


def _record_data(path: Path, arrays: Mapping[str, Tree], seed: int | None) -> None:
    """Adds arrays to data.json.

    Raises:
      FolderError: they are recorded with other content.
    """
    stored = json.loads(path.read_text()) if path.exists() else {}
    found = {
        f"{name}{leaf}": manifest.fingerprint(_as_it_is(value))
        | ({} if seed is None else {"split_seed": seed})
        for name, tree in arrays.items()
        for leaf, value in digests.named_leaves(tree).items()
    }
    changed = [
        f"{name}: {stored[name]} -> {one}"
        for name, one in found.items()
        if name in stored and stored[name] != one
    ]
    if changed:
        lines = "\n  ".join(changed)
        raise FolderError(
            f"the data of the run in {path.parent} have changed:\n  {lines}\n"
            "restore them, or give another --workdir"
        )
    text = json.dumps({**stored, **found}, indent=1, sort_keys=True) + "\n"
    files.replace_text(path, text)


def _last_state(folder: Path) -> dict[str, Any]:
    """Describes the last state, and which one is the best."""
    step = step_folder.latest_step(folder)
    if step is None:
        return {}
    sealed = step_folder.read(folder / str(step))
    return {
        "step": step,
        "state_sha256": digests.digest_of(sealed.records),
        "best_step": step_folder.best_step(folder),
    }


def _as_it_is(value: Any) -> Any:
    """An array in its own type: JAX would narrow 64 bits, and miss a difference."""
    return value if isinstance(value, np.ndarray) else digests.data_of(value)


def _write_summary(directory: Path, result: Any, seconds: float) -> None:
    content = {"status": "finished", "result": result, "time": round(seconds, 3)}
    content |= _last_state(directory / CHECKPOINTS)
    with folders.folder_errors(directory):
        text = json.dumps(content, indent=2) + "\n"
        files.replace_text(directory / folders.SUMMARY, text)


def _is_abstract(template: Tree) -> bool:
    leaves = jax.tree.leaves(template)
    return not leaves or any(isinstance(one, jax.ShapeDtypeStruct) for one in leaves)
