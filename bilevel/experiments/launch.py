"""The start of a program: flags, configuration, folder of the run, resume.

    def main(config, run):
        ...

    if __name__ == "__main__":
        bilevel.launch(main)

    python examples/x.py --config=configs/x.py --cfg.inner.steps=20 --workdir=runs/a

The same command again resumes the run, after `kill -9` too.
"""

import contextlib
import functools
import os
import shlex
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from absl import app, flags
from absl import logging as absl_logging

from bilevel.experiments import command_line, config, run_folder

Main: TypeAlias = Callable[[Any, run_folder.Run], object]

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def launch(
    main: Main,
    *,
    argv: Sequence[str] | None = None,
    flag_values: flags.FlagValues | None = None,
) -> NoReturn:
    """Runs `main(config, run)` as a program and exits.

    `--config=<file>` names a Python file with `get_config()`; `--cfg.<path>` replaces
    one of its values, `--workdir` chooses the folder, `--data_dir` the data,
    `--save_every` the steps between checkpoints; `--help` lists them all.

    - Without `--workdir` every start makes a new folder `runs/<config>-<time>`.
    - An unfinished run in the folder is resumed: `run.restore(template)` returns its
      last state. Of a finished one (`run.finish` was called) this is said, and that is
      all. With another configuration the folder is refused.
    - Ctrl-C prints the command that resumes, also where `main` returns normally after
      it, as `bilevel.run` does between two chunks. An interrupted run cannot finish.

    Args:
      main: takes the configuration and a `Run`; its result is ignored.
      argv: the command line, program name first; default `sys.argv`.
      flag_values: where the flags are defined; default `absl.flags.FLAGS`. With one of
        your own, `absl.app.run` is left out: for tests.

    Raises:
      SystemExit: always. Code 0: `main` returned, or the run was finished before;
        1: the command line, the configuration or the folder is wrong, said in
        one error message; 130: interrupted. What `main` raises is passed on.

    Example:
      ```
      if __name__ == "__main__":
          bilevel.launch(main)
      ```
    """
    command = _command(argv)
    argv = list(sys.argv if argv is None else argv)
    values = flags.FLAGS if flag_values is None else flag_values
    command_line.define_launch_flags(values, argv[0])
    path = command_line.config_argument(argv)
    loaded = None
    if path is not None:
        loaded = _or_exit(command_line.load_config, path)
        command_line.define_config_flags(loaded.config, values, argv[0])
    start = functools.partial(_start, main, loaded, values, argv, command)
    parse = functools.partial(_or_exit, command_line.parse, flag_values=values)
    if flag_values is not None:
        parse(argv)
        sys.exit(start(argv))
    app.run(start, argv=argv, flags_parser=parse)
    raise AssertionError("absl.app.run returned")


def _start(
    main: Main,
    loaded: command_line.Loaded | None,
    values: flags.FlagValues,
    argv: Sequence[str],
    command: Sequence[str],
    rest: Sequence[str],
) -> int:
    """Opens the folder and calls `main`; returns the exit code."""
    del rest  # the program name
    if loaded is None:
        _fail(command_line.no_config_message())
    _quieten_orbax(values)
    cfg = _or_exit(command_line.read_config, loaded.config, values)
    workdir = values["workdir"].value
    directory = Path(workdir) if workdir else run_folder.new_directory(loaded.path.stem)
    status = _or_exit(run_folder.claim, directory, cfg, source=loaded.source, argv=argv)
    if status == "finished":
        _say(f"{directory} is finished; for another run give another --workdir")
        return 0
    _say(f"{status} run in {directory}")
    resume = shlex.join([*command, *([] if workdir else [f"--workdir={directory}"])])
    save_every = typing.cast(int, values["save_every"].value)
    with _interrupts() as was_interrupted:
        try:
            with run_folder.open_run(
                directory,
                save_every=save_every,
                data_dir=values["data_dir"].value,
            ) as run:
                finish = functools.partial(_finish, run.finish, was_interrupted)
                main(cfg, run._replace(finish=finish))
            is_interrupted = was_interrupted()
        except KeyboardInterrupt:
            is_interrupted = True
    if not run_folder.is_finished(directory):
        reason = "interrupted" if is_interrupted else "main returned before run.finish"
        _say(f"{reason}; the run in {directory} is resumed by\n  {resume}")
    return _INTERRUPTED if is_interrupted else 0


def _finish(
    finish: Callable[[Mapping[str, Any]], None],
    was_interrupted: Callable[[], bool],
    summary: Mapping[str, Any],
) -> None:
    """Finishes the run unless it was cut short."""
    # `bilevel.run` answers Ctrl-C by returning early, and `main` goes on as if it were
    # done: its summary would be of a part of the run.
    if was_interrupted():
        raise KeyboardInterrupt
    finish(summary)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed, whoever handled it."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread hears of signals
        return
    # Python writes the number of every signal to this pipe, before any handler runs.
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    seen = bytearray()

    def was_interrupted() -> bool:
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(reader, 4096))
        return signal.SIGINT in seen

    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield was_interrupted
    finally:
        signal.set_wakeup_fd(previous)
        os.close(reader)
        os.close(writer)


def _command(argv: Sequence[str] | None) -> list[str]:
    """Returns the command line with the interpreter."""
    return list(sys.orig_argv) if argv is None else ["python", *argv]


def _quieten_orbax(values: flags.FlagValues) -> None:
    """Hides absl's messages below warnings unless `--verbosity` asks for them."""
    # absl.app.run turns them on, and Orbax writes dozens of lines for every save.
    if "verbosity" in values and not values["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)


def _or_exit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function; a mistake of the user becomes a message and exit code 1."""
    try:
        return function(*args, **kwargs)
    except (config.ConfigError, run_folder.FolderError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    _say(f"error: {message}")
    sys.exit(1)


def _say(message: str) -> None:
    # Not stdout: that belongs to the program's own result.
    sys.stderr.write(f"{message}\n")
