"""Experiments: typed configurations, run folders, checkpoints, exact resume.

    config       frozen dataclasses, checked, with one canonical JSON
    command_line configuration files, and a flag for every value
    launch       the start of a program
    run_folder   the folder of a run
    digests      identity of a state, leaf by leaf
    checkpoint   the state on disk; the only file that imports Orbax
    progress     a bar, or lines

`load_config` and `open_run` serve notebooks, where there is no command line.
"""

from bilevel.experiments import checkpoint, config, digests
from bilevel.experiments.command_line import load_config
from bilevel.experiments.launch import launch
from bilevel.experiments.progress import progress
from bilevel.experiments.run_folder import Run, claim, new_directory, open_run

__all__ = [
    "Run",
    "checkpoint",
    "claim",
    "config",
    "digests",
    "launch",
    "load_config",
    "new_directory",
    "open_run",
    "progress",
]
