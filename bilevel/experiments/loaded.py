"""A run read back, for a notebook or another project; nothing in the folder changes."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from bilevel.experiments import (
    checkpoint,
    folders,
    metrics,
    step_folder,
)
from bilevel.experiments import starts as starts_of

Tree: TypeAlias = Any


class LoadedRun(NamedTuple):
    """What a folder holds.

    Attributes:
      directory: the folder.
      config: the configuration as nested dictionaries; `config.from_dict(Config, ...)`
        makes the dataclass of it.
      metrics: the lines that were logged, one dictionary each; a list of rows, as
        `pandas.DataFrame` takes it.
      summary: summary.json, or None of an unfinished run; what the program passed to
        `run.finish` is under 'result'.
      data: shape, dtype and sha256 of the arrays that were used, by name.
      starts: command, environment and source of every start.
      steps: the checkpoints, in order.
      best_step: the one with the lowest metric, or None.
    """

    directory: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None
    data: dict[str, Any]
    starts: list[starts_of.Start]
    steps: list[int]
    best_step: int | None

    def column(self, name: str) -> tuple[list[int], list[Any]]:
        """Returns steps and values of one metric, from the lines that have it."""
        rows = [row for row in self.metrics if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]

    def state(self, template: Tree = None, *, step: int | None = None) -> Tree:
        """Returns a state that was saved, every file and leaf of it verified.

        Args:
          template: of the structure to restore into (see `checkpoint`); without one a
            dictionary from the name of a leaf, `.inner['w']`, to its array.
          step: which one, default the last.

        Raises:
          CheckpointError: there is none, it is damaged, or it does not fit.
        """
        return checkpoint.load(self.directory / folders.CHECKPOINTS, template, step)


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """Reads the folder of a run, finished or not.

    Args:
      path: the folder.

    Returns:
      `LoadedRun`.

    Raises:
      FolderError: it is no run, or its config.json was changed.
      MetricsError: its metrics are broken.

    Example:
      ```
      run = bilevel.load_run("runs/a")
      steps, losses = run.column("value")
      weights = run.state()[".inner"]
      ```
    """
    directory = Path(path).absolute()
    checkpoints = directory / folders.CHECKPOINTS
    return LoadedRun(
        directory=directory,
        config=folders.read_config(directory),
        metrics=metrics.read(directory / folders.METRICS),
        summary=_json(directory / folders.SUMMARY),
        data=_json(directory / folders.DATA) or {},
        starts=starts_of.read_all(directory),
        steps=step_folder.steps(checkpoints),
        best_step=step_folder.best_step(checkpoints),
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise folders.FolderError(f"{path} is damaged ({error})") from error
