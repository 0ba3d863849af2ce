"""Curves of the metrics of one run or several; needs matplotlib."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.datasets import files
from bilevel.experiments import folders, messages, metrics, printable

OF_A_RUN = "figures/metrics.png"
"""What `draw_run` draws, in the folder of a run."""

_COLUMNS = 3
_LINES = 10  # more runs than this are not told apart by a legend


def has_matplotlib() -> bool:
    """Says whether figures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the metrics that are numbers in some row, in order of appearance."""
    names = {
        name: None
        for row in rows
        for name, value in row.items()
        if _is_number(value) and name not in ("step", "time")
    }
    return list(names)


def by_text(
    rows: Sequence[Mapping[str, Any]], label: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Sorts rows by the texts in them, such as `method="filter"`: a line for each.

    Args:
      rows: as `load_run(...).metrics`.
      label: of rows without a text, and of all of them if there are too many texts for
        a figure.

    Example:
      >>> rows = [{"step": 1, "method": "a"}, {"step": 1, "method": "b"}]
      >>> list(by_text(rows, "run"))
      ['a', 'b']
    """
    sorted_rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        texts = [value for value in row.values() if isinstance(value, str)]
        sorted_rows.setdefault(", ".join(texts) or label, []).append(row)
    return sorted_rows if len(sorted_rows) <= _LINES else {label: list(rows)}


def draw_run(directory: Path) -> None:
    """Draws figures/metrics.png of a run; a run does not fail for a figure."""
    if not has_matplotlib():
        return
    try:
        lines = by_text(metrics.read(directory / folders.METRICS), directory.name)
        draw(lines, directory / OF_A_RUN)
    except Exception as error:
        messages.say(f"no figure of the metrics: {error}", directory)


def draw(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
    names: Sequence[str] | None = None,
) -> bool:
    """Draws one panel for each metric, one line for each run.

    Of a single run, metrics that differ in a number at the end (`angle_1`, `angle_2`,
    of layers say) share a panel.

    Args:
      runs: `{label: rows}`, rows as `load_run(...).metrics`.
      path: of the figure; its ending decides on the format.
      names: the metrics, by default all that are numbers.

    Returns:
      False if there was nothing to draw.
    """
    chosen = names or metric_names([row for rows in runs.values() for row in rows])
    if not chosen:
        return False
    figure, kind = make(runs, chosen), path.suffix[1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, lambda file: figure.savefig(file, format=kind, dpi=110))
    return True


def make(runs: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Any:
    """Returns the matplotlib figure that `draw` saves."""
    # Not pyplot: that would choose a backend for the whole program.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    families = _families(names) if len(runs) == 1 else {name: [name] for name in names}
    columns = min(_COLUMNS, len(families))
    lines = -(-len(families) // columns)
    figure = Figure((4.2 * columns, 2.8 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    lines_of = {}
    for panel, (title, family) in zip(panels, families.items(), strict=False):
        is_family = len(family) > 1
        pairs = [(*run, name) for run in runs.items() for name in family]
        for index, (run, rows, name) in enumerate(pairs):
            label = _plain(name.rsplit("_", 1)[-1] if is_family else run)
            points = [(r["step"], r[name]) for r in rows if _is_number(r.get(name))]
            if points:
                steps, values = _parted(np.array(points, float)).T
                style = "o-" if len(points) < 20 else "-"
                color = f"C{index % 10}"  # the same in every panel
                options = {"color": color, "markersize": 3, "label": label}
                (lines_of[label],) = panel.plot(steps, values, style, **options)
        if is_family and panel.get_lines():
            panel.legend(frameon=False, fontsize="small")
        panel.set_title(_plain(title), fontsize=10)
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if _spans_decades(panel):
            panel.set_yscale("log")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(families) :]:
        panel.set_axis_off()
    if 1 < len(runs) <= _LINES:
        labels = [label for label in map(_plain, runs) if label in lines_of]
        handles = [lines_of[label] for label in labels]
        panels[0].legend(handles, labels, frameon=False, fontsize="small")
    return figure


def _plain(text: str) -> str:
    """Returns a name in one line, of which no `$` is taken for a formula."""
    return printable.line(text).replace("$", r"\$")


def _families(names: Sequence[str]) -> dict[str, list[str]]:
    """Metrics by panel, in order; those that are alone keep their whole name."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"_\d+$", "", name), []).append(name)
    pairs = found.items()
    return {own[0] if len(own) == 1 else stem: own for stem, own in pairs}


def _parted(points: np.ndarray) -> np.ndarray:
    """Parts `[n, 2]` points by NaN where steps begin anew, of another method say."""
    starts = np.flatnonzero(np.diff(points[:, 0]) <= 0) + 1
    return np.insert(points, starts, np.nan, axis=0)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and bool(np.isfinite(value))


def _spans_decades(panel: Any) -> bool:
    values = [line.get_ydata() for line in panel.get_lines()]
    together = np.concatenate(values) if values else np.zeros(1)
    least, most = np.nanmin(together), np.nanmax(together)
    return bool(least > 0 and most > 100 * least)
