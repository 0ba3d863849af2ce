"""A run read back, for a notebook or another project; nothing in the folder changes."""

import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from bilevel.experiments import check, checkpoint, folders, metrics, step_folder
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
          step: which one, default the last; of a finished run that at which it ended.

        Raises:
          CheckpointError: there is none, it is damaged, it does not fit, or it is not
            the state that the run had at this step.
        """
        directory = self.directory / folders.CHECKPOINTS
        saved = step_folder.steps(directory)
        end = None if self.summary is None else self.summary.get("step")
        if step is None and end is not None and end not in saved:
            raise checkpoint.CheckpointError(
                f"the run ended at step {end}, of which {directory} holds no complete"
                f" state; there are {saved}: state(step=...) returns one of those"
            )
        chosen = max(saved, default=None) if step is None and end is None else step
        chosen = end if chosen is None else chosen
        state = checkpoint.load(directory, template, chosen)
        leaves = step_folder.read_leaves(directory / str(chosen))
        difference = check.step_difference(self.directory, leaves)
        if difference is not None:
            raise checkpoint.CheckpointError(f"{directory / str(chosen)} {difference}")
        later = [int(one.name) for one in step_folder.unsealed(directory)]
        if step is None and later and max(later) > leaves.step:
            message = f"step {max(later)} in {directory} is not complete; this is step"
            warnings.warn(f"{message} {chosen}", stacklevel=2)
        return state


def load_run(
    path: str | os.PathLike[str], *, damaged: Literal["raise", "warn"] = "raise"
) -> LoadedRun:
    """Reads the folder of a run, finished or not, and checks it.

    Cost: reads every file of a finished run, 0.1 s per 100 MB.

    Args:
      path: the folder.
      damaged: what to do if the folder is not what was written (see `check`): with
        "warn" the rest of it is read. Lines that are broken are left out then, of a
        record that is no JSON nothing is returned.

    Returns:
      `LoadedRun`.

    Raises:
      FolderError: it is no run, or damaged, or has links to elsewhere; the message has
        every file.

    Example:
      ```
      run = bilevel.load_run("runs/a")
      steps, losses = run.column("value")
      weights = run.state()[".inner"]
      ```
    """
    if damaged not in ("raise", "warn"):
        raise ValueError(f"damaged: expected 'raise' or 'warn', got {damaged!r}")
    directory = folders.local(path).absolute()
    checkpoints = directory / folders.CHECKPOINTS
    report = check.check(directory, in_full=False)
    if report.wrong and damaged == "raise":
        raise folders.FolderError(
            f"{report.text()}\nload_run(..., damaged='warn') reads the rest"
        )
    if report.wrong or report.lost:
        warnings.warn(report.text(), stacklevel=2)
    return LoadedRun(
        directory=directory,
        config=_config(directory),
        metrics=metrics.read(directory / folders.METRICS, skip_broken=True),
        summary=_json(directory / folders.SUMMARY),
        data=_json(directory / folders.DATA) or {},
        starts=starts_of.read_all(directory, skip_damaged=True),
        steps=step_folder.steps(checkpoints),
        best_step=step_folder.best_step(checkpoints),
    )


def _config(directory: Path) -> dict[str, Any]:
    """Returns the configuration; what is wrong with it is said already."""
    try:
        return folders.read_config(directory)
    except folders.FolderError:
        return {}


def _json(path: Path) -> Any:
    """Returns an object, or None; what is wrong with it is said already."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
