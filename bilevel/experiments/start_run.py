"""A recorded run without a command line: for notebooks, and for loops over runs."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from bilevel.experiments import config as configs
from bilevel.experiments import (
    folders,
    interrupts,
    logs,
    messages,
    notebook,
    plots,
    run_folder,
    seal,
    starts,
)

StrPath: TypeAlias = str | os.PathLike[str]


@contextlib.contextmanager
def start_run(
    config: Any,
    directory: StrPath | None = None,
    *,
    save_every: int = 1000,
    save_seconds: float | None = 20.0,
    restore_step: int | None = None,
    data_dir: StrPath | None = None,
) -> Iterator[run_folder.Run]:
    """Opens the folder of a run and records the start, as `launch` does for a program.

    The same cell again resumes the run. Of a finished run `run.restore` gives the last
    state, so that `experiments.train` has nothing left to do. In a notebook the cells
    that were run so far are recorded, too (`starts/<n>/cells.py.txt`): they are the
    program. At the end the curves of the metrics are drawn (figures/metrics.png).

    Args:
      config: a dataclass, or `config.of(seed=0, num_steps=100)`.
      directory: the folder; default a new one, `runs/run-<time>`.
      save_every: steps between checkpoints.
      save_seconds: at most so many seconds between checkpoints; None for no limit.
      restore_step: resume from this step; later ones are set aside.
      data_dir: passed on as `run.data_dir`.

    Yields:
      `Run`; see `open_run` for what its functions raise.

    Raises:
      ConfigError: the configuration is wrong.
      FolderError: the folder holds a run with another configuration (the message lists
        the differences) or no run, or another process writes to it.
      SystemExit: of a script, if SIGTERM, SIGUSR1 or SIGHUP came: with its code, once
        what was saved is complete. A notebook hears of Ctrl-C only.

    Example:
      ```
      with experiments.start_run(config.of(seed=0), "runs/a") as run:
          state = experiments.train(run, solver, state, batches, num_steps=1000)
          run.finish({"penalties": state.outer})
      ```
    """
    config = configs.checked(config)
    is_new = directory is None
    folder = folders.new_directory("run") if is_new else folders.local(directory)
    status = folders.claim(folder, config)
    is_old = status == "finished"  # nothing in it changes, then
    messages.say(f"{status} run in {folder}", None if is_old else folder)
    with (
        contextlib.nullcontext() if is_old else logs.log_file(folder),
        _exit_code_of_signals(folder),
        run_folder.open_run(
            folder,
            save_every=save_every,
            save_seconds=save_seconds,
            restore_step=restore_step,
            data_dir=None if data_dir is None else Path(data_dir),
        ) as run,
    ):
        if is_old:
            yield run
        else:
            flags = {
                "deterministic": os.environ.get("NPROC") == "1",
                "save_every": save_every,
                "save_seconds": save_seconds,
            }
            start = starts.recorded(
                folder, _program(), sys.argv, flags, is_launched=False
            )
            with start as complete:
                yield run._replace(finish=_after(complete, run.finish))
    if folders.is_finished(folder) and not is_old:
        with seal.reopened(folder, plots.OF_A_RUN):
            plots.draw_run(folder)


@contextlib.contextmanager
def _exit_code_of_signals(folder: Path) -> Iterator[None]:
    """Ends a script as `launch` does when a scheduler wants it to end."""
    if notebook.is_there():
        yield
        return
    with interrupts.noticed() as first_signal:
        try:
            yield
        except KeyboardInterrupt as error:
            number = first_signal()
            if number in (0, signal.SIGINT):
                raise
            name = signal.Signals(number).name
            message = f"ended by {name}; the same script resumes the run in {folder}"
            # Nothing in the folder of a finished run changes.
            messages.say(message, None if folders.is_finished(folder) else folder)
            raise SystemExit(interrupts.exit_code(number)) from error


def _after(
    complete: Callable[[], None], finish: Callable[[Mapping[str, Any]], None]
) -> Callable[[Mapping[str, Any]], None]:
    def finished(summary: Mapping[str, Any]) -> None:
        complete()
        finish(summary)

    return finished


def _program() -> str:
    """The script that runs, or the folder of the notebook."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    return str(Path.cwd() / "notebook") if path is None else path
