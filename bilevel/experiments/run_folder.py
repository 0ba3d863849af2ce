"""The folder of one run: its configuration, metrics, checkpoints and summary.

    runs/<name>/
      config.json     the configuration, its digest and the command line
      config.py.txt   the text of the configuration file
      metrics.jsonl   one JSON line for each `run.log`, flushed each time
      ckpt/<step>/    the state
      summary.json    written last; a folder without it is of an unfinished run

The same command in the same folder resumes. After `kill -9` the folder is whole: files
are replaced in one step, and a broken last line of the metrics is dropped.
"""

import contextlib
import datetime
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from bilevel.experiments import config
from bilevel.experiments.checkpoint import latest_step, open_checkpoints

Tree: TypeAlias = Any
Status: TypeAlias = Literal["new", "unfinished", "finished"]

_CONFIG, _SOURCE, _SUMMARY = "config.json", "config.py.txt", "summary.json"


class FolderError(ValueError):
    """A folder cannot be used for this run; the message says what to do."""


class Log(Protocol):
    """Type of `Run.log`."""

    def __call__(self, step: int, **metrics: Any) -> None:
        """Writes one line of metrics."""
        ...


class Save(Protocol):
    """Type of `Run.save`."""

    def __call__(self, step: int, state: Tree, *, force: bool = False) -> bool:
        """Saves the state if the step is due."""
        ...


class Run(NamedTuple):
    """What a program needs of the folder of its run.

    Attributes:
      directory: the folder.
      data_dir: the folder of the data sets, or None.
      log: `log(step, loss=0.5, solver="cg")` writes one line of metrics. Values are
        numbers (arrays of one entry too), strings, bools or None. NaN and the
        infinities, which JSON lacks, become the strings 'NaN', 'Infinity' and
        '-Infinity' (Python's `float` reads them back).
      save: `save(step, state, force=False)` saves the state if a multiple of
        `save_every` was reached since the last save, or if forced; returns whether it
        did. It may return before the files are complete; the buffers of the state may
        be donated at once.
      restore: `restore(template)` returns `(state, step)` of the last checkpoint, or
        None in a new folder. Metrics of later steps are dropped: they will come again.
      finish: `finish(summary)` writes summary.json; the run counts as finished.
      path: `path("figures/loss.pdf")` returns a path in the folder and makes the
        folders above it.
    """

    directory: Path
    data_dir: Path | None
    log: Log
    save: Save
    restore: Callable[[Tree], tuple[Tree, int] | None]
    finish: Callable[[Mapping[str, Any]], None]
    path: Callable[[str], Path]


def new_directory(name: str, parent: Path = Path("runs")) -> Path:
    """Makes the folder `<parent>/<name>-<time>[-n]` and returns it.

    Two processes that start in the same second get two folders.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    count = 1
    while True:
        directory = parent / f"{name}-{now}{'' if count == 1 else f'-{count}'}"
        try:
            directory.mkdir()
        except FileExistsError:
            count += 1
        else:
            return directory


def claim(
    directory: Path, cfg: Any, *, source: str = "", argv: Sequence[str] = ()
) -> Status:
    """Takes a folder for a run with this configuration.

    Args:
      directory: made if it is not there.
      cfg: the configuration.
      source: the text of the configuration file, kept as config.py.txt.
      argv: the command line, kept in config.json.

    Returns:
      'new', 'unfinished' (to be resumed) or 'finished'.

    Raises:
      FolderError: the folder holds a run with another configuration (the message lists
        the differences), or something that is no run.
    """
    if directory.exists() and not directory.is_dir():
        raise FolderError(f"{directory} is a file; give another --workdir")
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / _CONFIG
    if record.exists():
        _check_same(directory, json.loads(record.read_text())["config"], cfg)
        return "finished" if is_finished(directory) else "unfinished"
    # What a killed `claim` leaves behind is no obstacle.
    names = [one.name for one in directory.iterdir()]
    if any(name != _SOURCE and not name.startswith(".") for name in names):
        raise FolderError(
            f"{directory} holds files but no run (no {_CONFIG}); give another --workdir"
        )
    _write(directory / _SOURCE, source)
    content = {
        "format_version": 1,
        "config": config.to_dict(cfg),
        "config_digest": config.digest(cfg),
        "argv": list(argv),
    }
    _write(record, json.dumps(content, indent=2, sort_keys=True) + "\n")
    return "new"


def is_finished(directory: Path) -> bool:
    """Says whether the run in a folder reached its end."""
    return (directory / _SUMMARY).exists()


@contextlib.contextmanager
def open_run(
    directory: str | Path,
    *,
    save_every: int = 1000,
    data_dir: str | Path | None = None,
) -> Iterator[Run]:
    """Opens a folder for a program or a notebook; saves are complete when it closes.

    Args:
      directory: an existing folder (see `claim`).
      save_every: steps between checkpoints.
      data_dir: passed on as `run.data_dir`.

    Yields:
      `Run`. Its functions raise `RuntimeError` if a folder with a checkpoint is written
      to before `restore` was called, `ValueError` on a metric or summary that is no
      JSON, and `CheckpointError` as `open_checkpoints` says.

    Example:
      ```
      with open_run("runs/a") as run:
          restored = run.restore(state)
          state, step = restored or (state, 0)
          run.log(step, loss=0.5)
      ```
    """
    directory = Path(directory).absolute()
    metrics, checkpoint_folder = directory / "metrics.jsonl", directory / "ckpt"
    begin, require_begun = _beginning(metrics, checkpoint_folder)

    with open_checkpoints(checkpoint_folder, save_every) as checkpoints:

        def log(step: int, **values: Any) -> None:
            require_begun()
            line = json.dumps({"step": int(step), **_plain(values, "metrics")})
            with metrics.open("a") as file:  # closed, so that a kill loses nothing
                file.write(f"{line}\n")

        def save(step: int, state: Tree, *, force: bool = False) -> bool:
            require_begun()
            return checkpoints.save(int(step), state, force=force)

        def restore(template: Tree) -> tuple[Tree, int] | None:
            restored = checkpoints.restore(template)
            begin(None if restored is None else restored[1])
            return restored

        def finish(summary: Mapping[str, Any]) -> None:
            content = {"status": "finished", **_plain(summary, "summary")}
            checkpoints.wait()
            _write(directory / _SUMMARY, json.dumps(content, indent=2) + "\n")

        def path(name: str) -> Path:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            return directory / name

        data_path = None if data_dir is None else Path(data_dir)
        yield Run(directory, data_path, log, save, restore, finish, path)


def _beginning(
    metrics: Path, checkpoint_folder: Path
) -> tuple[Callable[[int | None], None], Callable[[], None]]:
    """Returns `begin(restored step)`, and `require_begun()` before the first write."""
    is_begun = False

    def begin(step: int | None) -> None:
        nonlocal is_begun
        keep_lines(metrics, step)
        is_begun = True

    def require_begun() -> None:
        if is_begun:
            return
        step = latest_step(checkpoint_folder)
        if step is not None:
            raise RuntimeError(
                f"{checkpoint_folder} holds step {step}: call run.restore(template)"
                " before run.log and run.save"
            )
        begin(None)

    return begin, require_begun


def keep_lines(metrics: Path, last_step: int | None) -> None:
    """Drops from a metrics file the lines after a step, and a broken last line.

    Args:
      metrics: the file; it need not be there.
      last_step: the last step to keep; None keeps nothing.

    Raises:
      FolderError: a line before the last one is broken: nobody but a user does that.
    """
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise FolderError(f"line {number} of {metrics} is broken") from None
        if last_step is not None and step <= last_step:
            kept.append(f"{line}\n")
    if lines:
        _write(metrics, "".join(kept))


def _check_same(directory: Path, stored: Mapping[str, Any], cfg: Any) -> None:
    lines = config.difference(stored, cfg)
    if lines:
        raise FolderError(
            "\n  ".join(
                [
                    f"{directory} holds a run with another configuration"
                    " (field: stored -> given):",
                    *lines,
                ]
            )
            + "\ngive the stored values to resume it, or another --workdir"
        )


def _plain(value: Any, name: str) -> Any:
    """Returns a value as JSON has it.

    Raises:
      ValueError: it has no JSON; the message names where it stands.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(one, f"{name}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{name}[{index}]") for index, one in enumerate(value)]
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy and JAX
        return _plain(value.tolist(), name)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name} is a {type(value).__name__}, which JSON cannot hold")


def _write(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
