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
      SHA256SUMS        the seal of a finished run, see `seal` and `check`
      *-set-aside       what was in the way: steps, lines; nothing is ever deleted

The same command in the same folder resumes. After `kill -9`, and after a power cut, the
folder is whole: files are replaced in one step, lines are on the disk before the step
that counts them, and half a line at the end is set aside.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

from bilevel.datasets import manifest
from bilevel.experiments import (
    check,
    checkpoint,
    data_record,
    folders,
    interrupts,
    journal,
    messages,
    metrics,
    seal,
    set_aside,
    step_folder,
    summary,
)
from bilevel.experiments.checkpoint import CheckpointError
from bilevel.experiments.folders import CHECKPOINTS, METRICS, Folder, FolderError

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
        the template. Metrics of later steps are set aside: they will come again (those
        of a finished run stay).
      metrics: `metrics()` returns the lines that were logged, one dictionary each.
      record_data: `record_data(split_seed=3, train=examples)` records name, shape,
        dtype and sha256 of arrays (any pytree); on resume it refuses others.
      finish: `finish(summary)` seals the folder and writes summary.json; the run counts
        as finished. What is named `...seconds` is taken as a time here, too.
      path: `path("figures/loss.pdf")` returns a path in the folder and makes the
        folders above it. Of a finished run, too, the file may be written: it is sealed
        when the run closes.
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
      JSON and on a step that is no whole number, `CheckpointError` as
      `open_checkpoints` says and where a state is not the one in digests.jsonl, and
      `FolderError` when the disk refuses, or the folder was deleted.

    Raises:
      FolderError: another process writes to the folder, or it is of a finished run and
        damaged, or `restore_step` would change a finished run, or it is a remote one,
        or has links to elsewhere.

    Example:
      ```
      with open_run("runs/a") as run:
          restored = run.restore(state)
          state, step = restored or (state, 0)
          run.log(step, loss=0.5)
      ```
    """
    directory = folders.local(directory).absolute()
    data = None if data_dir is None else folders.local(data_dir)
    folders.require_plain(directory)
    if (link := directory / CHECKPOINTS).is_symlink():
        messages.say(f"checkpoints are in {link.resolve()}: {link} is a link")
    handed_out: list[str] = []

    def log(step: int, **values: Any) -> None:
        step = metrics.as_step(step)
        lines.require(step)
        lines.log(step, values)

    @interrupts.held_back()  # a state that is saved has its digest, too
    def save(
        step: int, state: Tree, *, force: bool = False, metric: Any = None
    ) -> bool:
        step = metrics.as_step(step)
        lines.require(step)
        if save_steps is not None and step not in save_steps:
            return False
        is_forced = force or save_steps is not None
        return bool(checkpoints.save(step, state, force=is_forced, metric=metric))

    @interrupts.held_back()
    def restore(template: Tree, *, cast: bool = False) -> tuple[Tree, int] | None:
        restored = checkpoints.restore(template, cast=cast)
        if restored is not None:
            _check_step(directory, restored[1])
        lines.begin(None if restored is None else restored[1])
        if restored is None and not _is_abstract(template):
            save(0, template, force=True)
        return restored

    def logged() -> list[dict[str, Any]]:
        return metrics.read(directory / METRICS)

    def record_data(*, split_seed: int | None = None, **arrays: Tree) -> None:
        data_record.record(folder, arrays, split_seed)

    @interrupts.held_back()
    def finish(result: Mapping[str, Any]) -> None:
        if folders.is_finished(directory):
            folder.require()
        else:  # which lines are missing is known once the run was restored
            lines.require(0)
        plain = metrics.plain(result, "summary")
        checkpoints.wait()
        summary.write(folder, plain, lines.seconds(), lines.finish(), handed_out)

    def path(name: str) -> Path:
        handed_out.append(name)
        with folders.folder_errors(directory):
            seal.update(directory, handed_out)
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        return directory / name

    with folders.locked(directory) as is_held:
        folder = Folder(directory, is_held)
        _prepare(directory, restore_step)
        lines = journal.start(folder, stop_after)
        with (
            _closing(folder),
            checkpoint.open_checkpoints(
                directory / CHECKPOINTS,
                save_every,
                seconds=save_seconds,
                link=lines.link,
                say=functools.partial(messages.say, directory=directory),
                is_read_only=folders.is_finished(directory),
            ) as checkpoints,
        ):
            yield Run(
                directory=directory,
                data_dir=data,
                log=log,
                save=save,
                restore=restore,
                metrics=logged,
                record_data=record_data,
                finish=finish,
                path=path,
            )


def _prepare(directory: Path, restore_step: int | None) -> None:
    """Refuses a finished run that is damaged, and goes back in an unfinished one."""
    say = functools.partial(messages.say, directory=directory)
    if folders.is_finished(directory):
        if restore_step is not None:
            raise FolderError(
                f"the run in {directory} is finished, and going back to step"
                f" {restore_step} would change it: give another folder, and start from"
                f" load_run({str(directory)!r}).state(template, step={restore_step})"
            )
        report = check.check(directory)
        if report.wrong:
            raise FolderError(report.text())
    elif seal.is_sealed(directory):
        set_aside.seal(directory, say)
    if restore_step is not None:
        _go_back(directory / CHECKPOINTS, restore_step, say)


@contextlib.contextmanager
def _closing(folder: Folder) -> Iterator[None]:
    """Says that the folder was deleted, if it was; completes its seal."""
    try:
        yield
        folder.require()
    except (CheckpointError, OSError):
        folder.require()
        raise
    finally:
        if folder.is_held() and folders.is_finished(folder.path):
            with folder.errors():
                seal.update(folder.path)


def _go_back(folder: Path, step: int, say: set_aside.Say) -> None:
    """Makes an earlier step the latest, if it is intact."""
    if step not in step_folder.steps(folder):
        raise FolderError(
            f"{folder} holds no step {step}; there are {step_folder.steps(folder)}"
        )
    try:
        step_folder.read(folder / str(step))
    except manifest.DamagedFileError as error:
        raise FolderError(f"step {step} is damaged too: {error}") from error
    set_aside.later(folder, step, say)


def _check_step(directory: Path, step: int) -> None:
    """Refuses a state that is not the one that the run had."""
    leaves = step_folder.read_leaves(directory / CHECKPOINTS / str(step))
    difference = check.step_difference(directory, leaves)
    if difference is not None:
        raise CheckpointError(
            f"checkpoint {directory / CHECKPOINTS / str(step)} {difference}"
        )


def _is_abstract(template: Tree) -> bool:
    leaves = jax.tree.leaves(template)
    return not leaves or any(isinstance(one, jax.ShapeDtypeStruct) for one in leaves)
