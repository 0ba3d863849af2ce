"""The table and the figures of `data_cleaning.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from examples.data_cleaning_task import Config, Task

CLEAN, WRONG, GREY = "#2a7fba", "#d1495b", "#666666"


class Detection(NamedTuple):
    """Of the labels called wrong: what they are worth."""

    precision: float
    recall: float
    f1: float


class Quality(NamedTuple):
    """Of a model trained on the labels kept."""

    held_out_loss: float  # nan where nothing is held out
    test_accuracy: float
    f1: float  # of the labels called wrong


class Row(NamedTuple):
    """A row of the table."""

    penalty: float
    validation_loss: float
    test_accuracy: float
    found: Detection | None  # for those that call labels wrong


def detection(called: np.ndarray, is_wrong: np.ndarray) -> Detection:
    """Precision, recall and their harmonic mean; 0 where undefined."""
    hits = int((called & is_wrong).sum())
    precision = hits / max(int(called.sum()), 1)
    recall = hits / max(int(is_wrong.sum()), 1)
    return Detection(
        precision, recall, 2 * hits / max(int(called.sum() + is_wrong.sum()), 1)
    )


def as_dict(rows: Mapping[str, Row]) -> dict[str, Any]:
    """Nested dictionaries of numbers, for JSON."""
    return {
        name: {**row._asdict(), "found": row.found and row.found._asdict()}
        for name, row in rows.items()
    }


def table(rows: Mapping[str, Row]) -> str:
    """The rows as aligned text."""
    width = max(len(name) for name in rows)
    head = (
        f"{'':{width}}  {'L2':>7}  {'val. loss':>9}  {'test acc.':>9}"
        f"  {'precision':>9}  {'recall':>6}  {'F1':>6}"
    )
    lines = [head, "-" * len(head)]
    for name, row in rows.items():
        line = (
            f"{name:{width}}  {row.penalty:7g}  {row.validation_loss:9.3f}"
            f"  {row.test_accuracy:9.2%}"
        )
        if row.found is not None:
            found = row.found
            line += f"  {found.precision:9.3f}  {found.recall:6.3f}  {found.f1:6.3f}"
        lines.append(line)
    under = "val. loss: cross-validated; precision, recall, F1: of labels called wrong"
    return "\n".join(["", *lines, "", under])


def weights(logits: np.ndarray, is_wrong: np.ndarray, path: Path) -> None:
    """A histogram of the weights of clean and of wrong labels."""
    values = 1 / (1 + np.exp(-logits))
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    bins = np.linspace(0, 1, 41).tolist()
    for name, color, mask in (("clean", CLEAN, ~is_wrong), ("wrong", WRONG, is_wrong)):
        label = f"{mask.sum()} {name} labels"
        axes.hist(values[mask], bins, color=color, alpha=0.6, label=label)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle="--")
    axes.set_yscale("log")
    axes.set(xlabel="learned weight", ylabel="training examples", xlim=(0, 1))
    axes.set_title("called wrong  |  kept", fontsize=10, color=GREY)
    axes.legend(loc="upper center", framealpha=1, edgecolor="white")
    _save(figure, path)


def stage_name(cfg: Config, number: int) -> str:
    """What the lines of the metrics call a stage: the trials, then the last one."""
    penalties = cfg.cleaning.penalties
    return f"trial, L2 {penalties[number]:g}" if number < len(penalties) else "final"


def best_trial(cfg: Config, lines: Sequence[Mapping[str, Any]]) -> int:
    """The trial whose held-out loss is the least at its end."""
    ends = {line["stage"]: line["held_out_loss"] for line in lines}
    trials = range(len(cfg.cleaning.penalties))
    return min(trials, key=lambda trial: ends[stage_name(cfg, trial)])


def suspects(task: Task, logits: np.ndarray, path: Path) -> None:
    """The images with the smallest weights, with given and true label."""
    figure, axes = plt.subplots(5, 10, figsize=(10, 6.2), layout="constrained")
    axes = np.asarray(axes).ravel()
    side = round(len(task.mean) ** 0.5)
    worst = np.argsort(logits, kind="stable")
    for axis, index in zip(axes, worst, strict=False):
        image = (task.inputs[index] + task.mean).reshape(side, side)
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        given, true = int(task.given[index]), int(task.true[index])
        color = WRONG if given == true else "black"
        axis.set_title(f"{given} (true {true})", fontsize=9, color=color)
        axis.axis("off")
    figure.suptitle(
        "Smallest weights: given label (true label); red: a correct label called wrong"
    )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
