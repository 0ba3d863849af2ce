"""Metrics of a run: one JSON line for each step that is logged.

A line is `{"step": 3, "time": 1.25, "loss": 0.5}`; `time` is the training time in
seconds, over all starts of the run. `tail -f` shows it, `jq` and pandas read it.
"""

import json
import math
import operator
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RESERVED = ("step", "time")
"""What every line has; no metric can have these names."""

# JSON has no such numbers. They are stored as these texts, and a metric that is such a
# text with one more backslash before it.
_SPECIAL = re.compile(r"(\\*)(NaN|-?Infinity)")


class MetricsError(ValueError):
    """A metrics file is broken, or a metric has no place in it."""


class Split(NamedTuple):
    """The lines of a file, as a resume divides them.

    Attributes:
      kept: the lines up to a step, in order.
      steps: of the lines that are kept.
      later: those of later steps.
      broken: what is no line of a step: cut short by a kill, or damaged.
      seconds: the training time at the last line that is kept.
    """

    kept: list[str]
    steps: list[int]
    later: list[str]
    broken: list[str]
    seconds: float


def as_step(step: Any) -> int:
    """Returns the number of a step as an int.

    Raises:
      MetricsError: it is no whole number from 0 on.
    """
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise MetricsError(f"a step is a whole number, 0 or more; got {step!r}")
    return number


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
    head = {"step": as_step(step), "time": round(seconds, 3)}
    return json.dumps({**head, **plain(values, "metrics")}) + "\n"


def read(path: Path, *, skip_broken: bool = False) -> list[dict[str, Any]]:
    """Reads the lines of a file; a broken last one (of a killed run) is left out.

    Args:
      path: the file; it need not be there.
      skip_broken: leave out every line that is broken.

    Returns:
      One dictionary a line; 'NaN', 'Infinity' and '-Infinity' are floats again.

    Raises:
      MetricsError: a line before the last one is broken.
    """
    found, broken = [], 0
    for number, (_, content) in enumerate(_lines(path), start=1):
        if broken and not skip_broken:
            raise MetricsError(f"line {broken} of {path} is broken")
        if content is None:
            broken = broken or number
        else:
            found.append(_number(content))
    return found


def steps(path: Path) -> tuple[list[int], int | None]:
    """Returns the steps of the lines, and the number of the first broken line.

    A broken line at the very end, of a killed run, is none.
    """
    found: list[int] = []
    broken, last = None, 0
    for last, (_, content) in enumerate(_lines(path), start=1):
        if content is not None:
            found.append(content["step"])
        elif broken is None:
            broken = last
    return found, None if broken == last else broken


def split(path: Path, last_step: float | None = math.inf) -> Split:
    """Divides the lines of a file into those to keep and those to set aside.

    Args:
      path: the file; it need not be there.
      last_step: the last step to keep, by default all; None keeps nothing.
    """
    found = Split([], [], [], [], 0.0)
    for text, content in _lines(path):
        if content is None:
            found.broken.append(f"{text}\n")
        elif last_step is not None and content["step"] <= last_step:
            found.kept.append(f"{text}\n")
            found.steps.append(content["step"])
            found = found._replace(seconds=content.get("time", 0.0))
        else:
            found.later.append(f"{text}\n")
    return found


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
        known = value.tolist()
        if type(known) is not type(value):  # NumPy's long double is its own
            return plain(known, name)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if isinstance(value, str) and _SPECIAL.fullmatch(value):
        return f"\\{value}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise MetricsError(f"{name} is a {type(value).__name__}, which JSON cannot hold")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yields every line and its content, None where it holds no step."""
    if not path.exists():
        return
    # After a power failure there may be anything at the end.
    with path.open(errors="replace", newline="\n") as file:
        for line in file:
            text = line.rstrip("\r\n")
            try:
                content = json.loads(text)
            except (ValueError, RecursionError):
                content = None
            yield text, content if _is_line(content) else None


def _is_line(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("step"), int)
        and isinstance(content.get("time", 0.0), int | float)
    )


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _number(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_number(one) for one in value]
    special = _SPECIAL.fullmatch(value) if isinstance(value, str) else None
    if special is None:
        return value
    return value[1:] if special[1] else float(value)
