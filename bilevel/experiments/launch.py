"""The start of a program: flags, configuration, folder of the run, resume.

    def main(config, run):
        ...

    if __name__ == "__main__":
        bilevel.launch(main)

    python examples/x.py --config=configs/x.py --cfg.inner.steps=20 --workdir=runs/a

The same command again resumes the run, after `kill -9` too.
"""

import functools
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from absl import app, flags
from absl import logging as absl_logging

from bilevel.datasets import manifest
from bilevel.experiments import (
    checkpoint,
    command_line,
    config,
    determinism,
    environment,
    folders,
    interrupts,
    journal,
    logs,
    messages,
    metrics,
    plots,
    printable,
    profiling,
    redaction,
    run_folder,
    seal,
    starts,
    versions,
)

Main: TypeAlias = Callable[[Any, run_folder.Run], object]

_INTERRUPTED = {interrupts.exit_code(number) for number in interrupts.SIGNALS}


def launch(
    main: Main,
    default: Any = None,
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
    - Every start is recorded: command, environment, commit and diff (see `starts`).
      What differs from the lock file, or from the start before, is said.
    - `--deterministic` computes with one thread, so that the number of cores does not
      change bits; `--strict_env` refuses an environment that is not that of the lock;
      `--profile=20` says where the time of 20 steps goes.
    - Ctrl-C prints the command that resumes, also where `main` returns normally after
      it, as `bilevel.run` does between two chunks. An interrupted run cannot finish.
      SIGTERM, SIGUSR1 and SIGHUP, which schedulers send before they kill, do the same.

    Args:
      main: takes the configuration and a `Run`; its result is ignored.
      default: the configuration if there is no `--config`, for instance
        `config.of(seed=0, num_steps=100)`; None: the flag is required.
      argv: the command line, program name first; default `sys.argv`.
      flag_values: where the flags are defined; default `absl.flags.FLAGS`. With one of
        your own, `absl.app.run` is left out: for tests.

    Raises:
      SystemExit: always. Code 0: `main` returned, or the run was finished before;
        1: the command line, the configuration or the folder is wrong, said in
        one error message; 128 + the number of a signal (130: Ctrl-C, 143: SIGTERM, 138:
        SIGUSR1, 129: SIGHUP): the folder is closed, and the process ends at once,
        without functions of `atexit`. What `main` raises is passed on.

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
    elif default is not None:
        checked = _or_exit(config.checked, default)
        loaded = command_line.Loaded(checked, Path(argv[0]), "")
    if loaded is not None:
        command_line.define_config_flags(loaded.config, values, argv[0])
    start = functools.partial(_start, main, loaded, values, argv, command)
    parse = functools.partial(_or_exit, command_line.parse, flag_values=values)
    if flag_values is not None:
        parse(argv)
        sys.exit(start(argv))
    app.run(lambda rest: _left(start(rest)), argv=argv, flags_parser=parse)
    raise AssertionError("absl.app.run returned")


def _left(code: int) -> int:
    """Ends an interrupted program here; returns the code of any other."""
    if code in _INTERRUPTED:
        # Python's own end crashes or hangs after an interrupt that came while JAX
        # compiled. The folder is closed, so that nothing is left to do.
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code


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
    options = _or_exit(command_line.read_options, values)
    if options.deterministic:
        _or_exit(determinism.use_one_thread)
    _quieten_orbax(values)
    cfg = _or_exit(command_line.read_config, loaded.config, values)
    # Before anything starts JAX, which reads its flags once.
    programs = profiling.prepare() if options.profile else None
    if options.strict_env:
        _or_exit(_check_environment, argv[0])
    workdir = options.workdir
    directory = (
        _or_exit(folders.new_directory, loaded.path.stem)
        if workdir is None
        else workdir
    )
    status = _or_exit(folders.claim, directory, cfg, source=loaded.source)
    if status == "finished":
        messages.say(f"{directory} is finished; for another run give another --workdir")
        return 0
    # Not to that step once more.
    resume = [one for one in command if not one.startswith("--restore_step=")]
    resume += [] if workdir else [f"--workdir={directory}"]
    with logs.log_file(directory), interrupts.noticed() as first_signal:
        say = functools.partial(messages.say, directory=directory)
        say(f"{status} run in {directory}")
        _warn_of_secrets(directory, cfg)
        try:
            _run(main, cfg, directory, options, programs, argv, first_signal)
            number = first_signal()
        except journal.StoppedAfter as stop:
            say(str(stop))
            return 0
        except KeyboardInterrupt:
            number = first_signal() or signal.SIGINT
        except _MISTAKES as error:
            say(f"error: {error}")
            return 1
        except BaseException:
            with seal.reopened(directory, logs.NAME):
                logs.note(directory, traceback.format_exc())
            raise
        if folders.is_finished(directory):
            with seal.reopened(directory, logs.NAME, plots.OF_A_RUN):
                plots.draw_run(directory)
                say(f"finished: {_scalars(directory)}; all of it in {directory}")
        else:
            reason = _reason(number) if number else "main returned before finish"
            text = f"{reason}; the run in {directory} is resumed by\n  "
            messages.say(text + shlex.join(resume))
            logs.note(directory, text + shlex.join(redaction.redacted(resume)))
    return interrupts.exit_code(number) if number else 0


def _warn_of_secrets(directory: Path, cfg: Any) -> None:
    """Says that a configuration is recorded in full."""
    texts = {name for name, one in config.flat(cfg).items() if one and str(one) == one}
    if names := sorted(filter(redaction.is_secret_name, texts)):
        message = f"config.json holds {', '.join(names)}, as every configuration: pass"
        messages.warn(directory, f"{message} secrets by environment variables")


def _reason(number: int) -> str:
    is_ctrl_c = number == signal.SIGINT
    return "interrupted" if is_ctrl_c else f"ended by {signal.Signals(number).name}"


def _run(
    main: Main,
    cfg: Any,
    directory: Path,
    options: command_line.Options,
    programs: Path | None,
    argv: Sequence[str],
    first_signal: Callable[[], int],
) -> None:
    """Records the start, and calls `main` with the open folder."""
    with run_folder.open_run(
        directory,
        save_every=options.save_every,
        save_seconds=options.save_seconds,
        save_steps=options.save_steps,
        restore_step=options.restore_step,
        stop_after=options.stop_after,
        data_dir=options.data_dir,
    ) as run:
        if folders.is_finished(directory):  # by a process that was quicker
            return
        with starts.recorded(directory, argv[0], argv, options.recorded()) as complete:
            finish = functools.partial(_finish, run.finish, first_signal, complete)
            run = run._replace(finish=finish)
            if programs is None:
                main(cfg, run)
                return
            say = functools.partial(messages.say, directory=directory)
            with profiling.profiler(directory, programs, options.profile, say) as look:
                main(cfg, run._replace(save=_looking(look, run.save)))


def _looking(look: Callable[[int], None], save: run_folder.Save) -> run_folder.Save:
    """Calls `look(step)` before every save, due or not: then steps are done."""

    def looked(
        step: int, state: Any, *, force: bool = False, metric: Any = None
    ) -> bool:
        look(int(step))
        return save(step, state, force=force, metric=metric)

    return looked


def _check_environment(program: str) -> None:
    """Refuses an environment that is not that of the lock file."""
    lock = environment.find_lock(program)
    if lock is None:
        raise environment.EnvironmentMismatch(
            f"--strict_env: there is no requirements.lock above {program}"
        )
    environment.check(lock, strict=True)


def _scalars(directory: Path) -> str:
    """The numbers of the summary in a line."""
    summary = json.loads((directory / folders.SUMMARY).read_text())
    result = {**summary["result"], "time": summary["time"]}
    return ", ".join(
        f"{printable.line(name)} {value:.6g}"
        for name, value in result.items()
        if isinstance(value, int | float)
    )


def _finish(
    finish: Callable[[Mapping[str, Any]], None],
    first_signal: Callable[[], int],
    complete: Callable[[], None],
    summary: Mapping[str, Any],
) -> None:
    """Finishes the run unless it was cut short."""
    # `bilevel.run` answers Ctrl-C by returning early, and `main` goes on as if it were
    # done: its summary would be of a part of the run.
    if first_signal():
        raise KeyboardInterrupt
    complete()
    finish(summary)


def _command(argv: Sequence[str] | None) -> list[str]:
    """Returns the command line with the interpreter."""
    return list(sys.orig_argv) if argv is None else ["python", *argv]


def _quieten_orbax(values: flags.FlagValues) -> None:
    """Hides absl's messages below warnings unless `--verbosity` asks for them."""
    # absl.app.run turns them on, and Orbax writes dozens of lines for every save.
    if "verbosity" in values and not values["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)


# What a user can mend; everything else is shown with its traceback.
_MISTAKES = (
    manifest.DamagedFileError,
    config.ConfigError,
    folders.FolderError,
    checkpoint.CheckpointError,
    metrics.MetricsError,
    environment.EnvironmentMismatch,
    versions.LockError,
    determinism.StartedTooEarlyError,
)


def _or_exit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function; a mistake of the user becomes a message and exit code 1."""
    try:
        return function(*args, **kwargs)
    except _MISTAKES as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    messages.say(f"error: {message}")
    sys.exit(1)
