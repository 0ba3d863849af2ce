"""A table of runs: what differs between their configurations, and what came out."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.experiments import config, folders, metrics, printable
from bilevel.experiments.loaded import LoadedRun, load_run


class Row(NamedTuple):
    """A run in the table.

    Attributes:
      name: its folder, relative to the one that was searched.
      values: of the configuration, by dotted path.
      status: 'finished' or 'step 120'.
      last: the last value of the metric, NaN if it was never logged.
      best: the lowest one, or the highest.
      seconds: training time.
      run: the run.
    """

    name: str
    values: dict[str, Any]
    status: str
    last: float
    best: float
    seconds: float
    run: LoadedRun


def find(directory: Path) -> list[Path]:
    """Returns the folders of runs in a folder and below, sorted by name."""
    return sorted(one.parent for one in directory.rglob(folders.CONFIG))


def collect(
    directory: folders.StrPath, metric: str, highest: bool = False
) -> list[Row]:
    """Reads all runs of a folder, sorted by the best value of a metric.

    Args:
      directory: searched with all folders below.
      metric: the name it is logged under.
      highest: whether the best is the highest.

    Raises:
      FolderError: there is no run, or no run has logged this metric.
    """
    directory = folders.local(directory)
    paths = find(directory)
    if not paths:
        raise folders.FolderError(f"there is no run in {directory}")
    rows = []
    for path in paths:
        try:
            rows.append(_row(path, directory, metric, highest))
        # Whatever is wrong with a run that was received: the others are listed.
        except Exception as error:
            known = (folders.FolderError, metrics.MetricsError)
            text = str(error) if isinstance(error, known) else f"{path}: {error!r}"
            warnings.warn(printable.block(f"left out: {text}"), stacklevel=2)
    if not rows:
        raise folders.FolderError(f"there is no run in {directory} that can be read")
    if all(math.isnan(row.best) for row in rows):
        known = sorted(
            {name for row in rows for one in row.run.metrics for name in one}
        )
        raise folders.FolderError(
            f"no run in {directory} has logged {metric!r}; there are"
            f" {', '.join(map(printable.line, known)) or 'no metrics'}"
        )
    sign = -1 if highest else 1
    return sorted(rows, key=lambda r: (math.isnan(r.best), sign * r.best, r.name))


def differing(rows: Sequence[Row]) -> list[str]:
    """Returns the fields that not all runs have the same value of."""
    paths = {path: None for row in rows for path in row.values}
    absent = object()
    return [
        path
        for path in paths
        if len({repr(row.values.get(path, absent)) for row in rows}) > 1
    ]


def table(rows: Sequence[Row], metric: str) -> str:
    """Returns the table as aligned text."""
    fields = differing(rows)
    head = ["run", *fields, f"best {metric}", "last", "status", "seconds"]
    body = [
        [
            row.name,
            *(_text(row.values.get(field, "")) for field in fields),
            f"{row.best:.6g}",
            f"{row.last:.6g}",
            row.status,
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    head, *body = [[printable.line(one) for one in row] for row in (head, *body)]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    is_text = [True, *([False] * len(fields)), False, False, True, False]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(cells, widths, is_text, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(head), "-" * len(line(head)), *map(line, body)])


def _row(path: Path, directory: Path, metric: str, highest: bool) -> Row:
    run = load_run(path)
    _, values = run.column(metric)
    numbers = [float(one) for one in values if isinstance(one, int | float)]
    finite = [one for one in numbers if math.isfinite(one)]
    last_step = run.metrics[-1]["step"] if run.metrics else 0
    return Row(
        name=path.relative_to(directory).as_posix(),
        values=config.flat_dict(run.config),
        status="finished" if run.summary is not None else f"step {last_step}",
        last=numbers[-1] if numbers else math.nan,
        best=(max if highest else min)(finite, default=math.nan),
        seconds=float(run.metrics[-1].get("time", 0.0)) if run.metrics else 0.0,
        run=run,
    )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
