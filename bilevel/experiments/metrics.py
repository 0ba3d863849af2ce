"""Metrics of a run: one JSON line for each step that is logged.

A line is `{"step": 3, "time": 1.25, "loss": 0.5}`; `time` is the training time in
seconds, over all starts of the run. `tail -f` shows it, `jq` and pandas read it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bilevel.datasets.files import replace_text

RESERVED = ("step", "time")
"""What every line has; no metric can have these names."""


class MetricsError(ValueError):
    """A metrics file is broken, or a metric has no place in it."""


def append(path: Path, text: str) -> None:
    """Writes a line (see `line`); when this returns, a kill loses nothing.

    Raises:
      OSError: the file cannot be written.
    """
    with path.open("a") as file:
        file.write(text)


def line(step: int, seconds: float, values: Mapping[str, Any]) -> str:
    """Returns the line of a step.

    Args:
      step: the step.
      seconds: the training time.
      values: the metrics; see `Run.log` for what can be one.

    Raises:
      MetricsError: a metric has no JSON or a reserved name.
    """
    taken = [name for name in RESERVED if name in values]
    if taken:
        raise MetricsError(f"a metric cannot be named {taken[0]!r}: every line has one")
    head = {"step": int(step), "time": round(seconds, 3)}
    return json.dumps({**head, **plain(values, "metrics")}) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a file; a broken last one (of a killed run) is left out.

    Returns:
      One dictionary a line; 'NaN', 'Infinity' and '-Infinity' are floats again.

    Raises:
      MetricsError: a line before the last one is broken.
    """
    return [_number(json.loads(text)) for text in _lines(path)]


def keep(path: Path, last_step: int | None) -> float:
    """Drops the lines after a step, and a broken last line.

    Args:
      path: the file; it need not be there.
      last_step: the last step to keep; None keeps nothing.

    Returns:
      The training time at the last line that is kept.

    Raises:
      MetricsError: a line before the last one is broken.
    """
    if not path.exists():
        return 0.0
    kept, seconds = [], 0.0
    for text in _lines(path):
        content = json.loads(text)
        if last_step is not None and content["step"] <= last_step:
            kept.append(f"{text}\n")
            seconds = float(content.get("time", 0.0))
    replace_text(path, "".join(kept))
    return seconds


def plain(value: Any, name: str) -> Any:
    """Returns a value as JSON has it.

    Raises:
      MetricsError: it has no JSON; the message names where it stands.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one, f"{name}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, f"{name}[{index}]") for index, one in enumerate(value)]
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy and JAX
        return plain(value.tolist(), name)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise MetricsError(f"{name} is a {type(value).__name__}, which JSON cannot hold")


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines that hold a step."""
    # After a power failure there may be anything at the end.
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                return
            raise MetricsError(f"line {number} of {path} is broken") from None
        yield line


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _number(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_number(one) for one in value]
    is_special = isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity")
    return float(value) if is_special else value
