"""The command line: `python -m bilevel reproduce | check | runs | environment`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bilevel.datasets import files
from bilevel.experiments import (
    environment,
    fingerprint,
    plots,
    printable,
    reproduce,
    runs,
)
from bilevel.experiments.check import check
from bilevel.experiments.folders import CONFIG, FolderError
from bilevel.experiments.metrics import MetricsError
from bilevel.experiments.versions import LockError

_MISTAKES = (FolderError, MetricsError, LockError, reproduce.ReproduceError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    0: as it should be; 1: it is not (other bits, other numbers, damage); 2: a mistake
    in the command or a damaged folder, said in one message; 3: `check` cannot tell.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    # What stands behind -- is for the program that is run again.
    own, rest = given, []
    if "--" in given:
        own, rest = given[: given.index("--")], given[given.index("--") + 1 :]
    options = _parser().parse_args(own)
    options.rest = rest
    try:
        return options.command(options)
    except (*_MISTAKES, OSError, ValueError) as error:
        sys.stderr.write(f"error: {printable.block(error)}\n")
        return 2


def _reproduce(options: argparse.Namespace) -> int:
    def confirm(plan: reproduce.Plan) -> bool:
        sys.stderr.write(f"{plan.text()}\n")
        if not plan.foreign or options.yes:
            return True
        if not sys.stdin.isatty():
            return False
        sys.stderr.write("Run code that is not the clone's? [y/N] ")
        return input().strip().lower() in ("y", "yes")

    found = reproduce.reproduce(
        options.run,
        steps=options.steps,
        program=options.program,
        arguments=options.rest,
        confirm=confirm,
    )
    print(found.text())
    return 0 if found.first_difference is None else 1


def _runs(options: argparse.Namespace) -> int:
    rows = runs.collect(options.directory, options.by, options.highest)
    print(runs.table(rows, options.by))
    if not plots.has_matplotlib():
        print(
            "no figure: matplotlib is not installed (pip install 'bilevel[examples]')"
        )
        return 0
    folder = options.directory
    # Not into the folder of a run: nobody but its program writes there.
    folder = folder.absolute().parent if (folder / CONFIG).exists() else folder
    path = options.figure or folder / "runs.png"
    try:
        lines = {
            row.name if text == row.name else f"{row.name}, {text}": some
            for row in rows
            for text, some in plots.by_text(row.run.metrics, row.name).items()
        }
        is_drawn = plots.draw(lines, path, options.plot)
    except Exception as error:  # the table is there
        sys.stderr.write(printable.line(f"no figure: {error}") + "\n")
        return 0
    if is_drawn:
        print(f"curves in {path}")
    return 0


def _check(options: argparse.Namespace) -> int:
    """Returns 1 if anything is wrong or lost, 0 if not, 3 if that is not known."""
    reports = [check(one) for one in options.run]
    print("\n".join(printable.block(report.text()) for report in reports))
    if any(report.wrong or report.lost for report in reports):
        return 1
    return 0 if all(report.is_sealed for report in reports) else 3


def _environment(options: argparse.Namespace) -> int:
    if options.write is not None:
        fingerprint.write(options.write)
        print(f"wrote {options.write}")
        return 0
    lock = options.lock or environment.find_lock(Path.cwd() / "any")
    record = environment.record(lock)
    for name in ("python", "platform", "cpu", "cores", "threads", "backend", "devices"):
        print(f"{name:10} {record[name]}")
    for name in ("jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "numpy"):
        print(f"{name:16} {record['packages'].get(name, 'not installed')}")
    for name, value in record["variables"].items():
        print(f"{name}={value}")
    report = environment.compare(lock, options.golden)
    if lock is None:
        print("no requirements.lock above this folder: versions are not checked")
    print(f"{len(report.drift)} packages in other versions than the lock file")
    print("".join(f"  {one}\n" for one in report.drift), end="")
    print(f"{len(report.problems)} problems with flags and numbers")
    print("".join(f"  {one}\n" for one in report.problems), end="")
    is_bad = report.problems or (options.strict and (report.drift or lock is None))
    return 1 if is_bad else 0


def _path(text: str) -> Path:
    try:
        return files.local(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bilevel", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser(
        "reproduce",
        help="run a recorded run again: bit-identical, or what differs and why",
        description="Run it in a clone of the program's repository. What follows -- is"
        " passed to the program: -- --data_dir=... --cfg.seed=1. The code of the folder"
        " is executed: its configuration file, with the program of the clone. Both are"
        " shown first, and what is no file of the clone is asked about.",
    )
    one.add_argument("run", type=_path, help="folder of the run")
    one.add_argument("--steps", type=int, help="stop after this step")
    one.add_argument(
        "--program", type=_path, help="the file to run, if it is elsewhere"
    )
    one.add_argument(
        "--yes",
        action="store_true",
        help="run the folder's configuration file although the clone has no such file",
    )
    one.set_defaults(command=_reproduce)

    one = commands.add_parser(
        "check",
        help="whether the folder of a run is what was written, file by file",
        description="Exit code 0: every file is as it was when the run finished; 1:"
        " some are not, or lines were lost before a resume; 2: it is no run; 3: nothing"
        " is known to be wrong, but there is no seal over all files (the run is not"
        " finished, say).",
    )
    one.add_argument("run", type=_path, nargs="+", help="folder of a run")
    one.set_defaults(command=_check)

    one = commands.add_parser("runs", help="a table of runs, and their curves")
    one.add_argument("directory", type=_path, help="searched with all folders below")
    one.add_argument("--by", required=True, metavar="METRIC", help="sorts the table")
    one.add_argument("--highest", action="store_true", help="higher is better")
    one.add_argument("--plot", nargs="+", metavar="METRIC", help="default: all")
    one.add_argument("--figure", type=_path, help="default: runs.png in the folder")
    one.set_defaults(command=_runs)

    one = commands.add_parser(
        "environment", help="print the environment, and check that it is the same"
    )
    one.add_argument("--lock", type=_path, help="default: requirements.lock above here")
    one.add_argument("--golden", type=_path, default=fingerprint.GOLDEN)
    one.add_argument("--strict", action="store_true", help="fail on versions too")
    one.add_argument("--write", type=_path, help="write a golden file of the numbers")
    one.set_defaults(command=_environment)
    return parser


if __name__ == "__main__":
    sys.exit(main())
