"""Progress of `bilevel.run`: a bar, a live plot in a notebook, else lines.

Time left and speed count from the first call, so that compilation and the steps before
a resume are left out.
"""

import contextlib
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TextIO

_SECONDS_PER_PLOT = 1.0


class Callback(Protocol):
    """What `bilevel.run` calls on the host after each chunk of steps."""

    def __call__(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        """Shows the current step; the last call has `step == num_steps`."""
        ...


@contextlib.contextmanager
def progress(
    description: str,
    *,
    stream: TextIO | None = None,
    interval: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callback]:
    """Shows steps, steps per second, time left and the current metrics.

    In a notebook with matplotlib, a plot that grows; with rich and a terminal to write
    to, a bar; else a line for the first call, for the last one, and at most one every
    `interval` seconds between them.

    Args:
      description: what runs, one or two words.
      stream: where to write; default standard output, or the notebook.
      interval: seconds between two lines (no effect on a bar; a plot is drawn anew
        after a second).
      clock: seconds, for tests.

    Yields:
      `show(step, num_steps, metrics)`; it counts the speed from its first call, so
      that compilation and the steps before a resume are left out.

    Example:
      ```
      with progress("soba") as show:
          bilevel.run(solver, state, samples, num_steps=1000, progress=show)
      ```
    """
    target = stream or sys.stdout
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    if stream is None and in_notebook() and has_matplotlib:
        yield _plot(description, clock)
    elif target.isatty() and importlib.util.find_spec("rich") is not None:
        with _bar(description, target) as callback:
            yield callback
    else:
        yield _lines(description, target, interval, clock)


def speed(first: tuple[int, float], now: tuple[int, float]) -> float | None:
    """Returns steps per second between two `(step, seconds)`, None for no steps.

    Example:
      >>> speed((100, 0.0), (200, 2.0))
      50.0
    """
    steps, seconds = now[0] - first[0], now[1] - first[1]
    return steps / seconds if steps > 0 and seconds > 0 else None


def in_notebook() -> bool:
    """Says whether a notebook's kernel runs this code."""
    # Not imported: where there is a kernel, it is there already.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _plot(description: str, clock: Callable[[], float]) -> Callback:
    """Curves of the metrics in the notebook, drawn anew in place."""
    from IPython import display

    from bilevel.experiments import plots

    rows: list[dict[str, float]] = []
    first: tuple[int, float] | None = None
    last_drawn = -float("inf")
    handle = None

    def callback(step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        nonlocal first, last_drawn, handle
        now = clock()
        first = first or (step, now)
        rows.append({**metrics, "step": step})
        names = plots.metric_names(rows)
        if not names or (step < num_steps and now - last_drawn < _SECONDS_PER_PLOT):
            return
        last_drawn = now
        figure = plots.make({description: rows}, names)
        rate = speed(first, (step, now))
        figure.suptitle("  ".join(_head(description, step, num_steps, rate)))
        # As an image: whether a kernel shows figures depends on what was imported.
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=90)
        image = display.Image(data=data.getvalue())
        if handle is None:
            handle = display.display(image, display_id=True)
        else:
            handle.update(image)

    return callback


def _head(description: str, step: int, num_steps: int, rate: float | None) -> list[str]:
    """Where the run is, and when it ends."""
    parts = [f"{description} {step}/{num_steps}"]
    if rate is not None:
        parts += [_rate_text(rate), f"{_time_text((num_steps - step) / rate)} left"]
    return parts


def _lines(
    description: str, stream: TextIO, interval: float, clock: Callable[[], float]
) -> Callback:
    first: tuple[int, float] | None = None
    last_written = -float("inf")

    def callback(step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        nonlocal first, last_written
        now = clock()
        first = first or (step, now)
        if step < num_steps and now - last_written < interval:
            return
        last_written = now
        rate = speed(first, (step, now))
        where, *speeds = _head(description, step, num_steps, rate)
        parts = [where, *_texts(metrics), *speeds]
        stream.write("  ".join(parts) + "\n")
        stream.flush()

    return callback


@contextlib.contextmanager
def _bar(description: str, stream: TextIO) -> Iterator[Callback]:
    from rich import console, progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[metrics]}", markup=False),
    )
    with progress.Progress(*columns, console=console.Console(file=stream)) as bar:
        task = bar.add_task(description, total=None, rate="", metrics="")
        first: tuple[int, float] | None = None

        def callback(step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
            nonlocal first
            now = (step, time.monotonic())
            if first is None:  # time left counts from here: not from 0 after a resume
                first = now
                bar.reset(task, total=num_steps, completed=step)
            rate = speed(first, now)
            bar.update(
                task,
                completed=step,
                rate="" if rate is None else _rate_text(rate),
                metrics="  ".join(_texts(metrics)),
            )

        yield callback


def _texts(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name} {float(value):.4g}" for name, value in metrics.items()]


def _rate_text(rate: float) -> str:
    return f"{rate:.3g} steps/s"


def _time_text(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
