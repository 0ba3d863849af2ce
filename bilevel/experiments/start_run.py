"""A recorded run without a command line: for notebooks, and for loops over runs."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from bilevel.experiments import config as configs
from bilevel.experiments import folders, logs, messages, plots, run_folder, seal, starts

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

    Example:
      ```
      with experiments.start_run(config.of(seed=0), "runs/a") as run:
          state = experiments.train(run, solver, state, batches, num_steps=1000)
          run.finish({"penalties": state.outer})
      ```
    """
    config = configs.checked(config)
    folder = folders.new_directory("run") if directory is None else Path(directory)
    status = folders.claim(folder, config)
    is_old = status == "finished"  # nothing in it changes, then
    messages.say(f"{status} run in {folder}", None if is_old else folder)
    with (
        contextlib.nullcontext() if is_old else logs.log_file(folder),
        run_folder.open_run(
            folder,
            save_every=save_every,
            save_seconds=save_seconds,
            restore_step=restore_step,
            data_dir=None if data_dir is None else Path(data_dir),
        ) as run,
    ):
        if not is_old:
            flags = {
                "deterministic": os.environ.get("NPROC") == "1",
                "save_every": save_every,
                "save_seconds": save_seconds,
            }
            starts.record(folder, _program(), sys.argv, flags, is_launched=False)
        yield run
    if folders.is_finished(folder) and not is_old:
        with seal.reopened(folder, plots.OF_A_RUN):
            plots.draw_run(folder)


def _program() -> str:
    """The script that runs, or the folder of the notebook."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    return str(Path.cwd() / "notebook") if path is None else path
