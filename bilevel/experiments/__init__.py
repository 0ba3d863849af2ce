"""Experiments: typed configurations, run folders, checkpoints, exact resume.

    config       frozen dataclasses, checked, with one canonical JSON
    config_leaf  one value of a configuration: type, bounds, words
    command_line configuration files, and a flag for every value
    launch       the start of a program
    start_run    the same in a notebook
    messages     what both say
    folders      who may use a folder
    run_folder   the folder of a run
    journal      its lines, metrics and digests
    data_record  the arrays that it has used
    summary      its last file
    seal         the checksums of all its files, once it is finished
    check        whether it is what was written
    set_aside    what is in the way, moved and not deleted
    interrupts   Ctrl-C and the signals of schedulers
    starts       what is recorded of every start: environment, versions, source
    source, git  commit and diff
    modules      the code that was loaded, whatever git sees
    notebook     its cells
    redaction    values that look like secrets, left out
    printable    recorded text, fit for a terminal
    fingerprint  whether numbers are still the same numbers
    host_numerics  what NumPy's numbers depend on
    checkpoint   the state on disk; the only file that imports Orbax
    step_folder  what seals a checkpoint
    digests      identity of a state, leaf by leaf
    metrics      JSON lines
    logs         what was said
    train        the usual main loop
    progress     a bar, or lines
    loaded       a run read back
    reproduce    a run repeated and compared, once reproduction_plan was shown
    runs, plots  a table of runs, and curves

`load_config` and `start_run` serve notebooks, where there is no command line.
"""

from bilevel.experiments import checkpoint, config, digests, environment
from bilevel.experiments.command_line import load_config
from bilevel.experiments.folders import claim, new_directory
from bilevel.experiments.launch import launch
from bilevel.experiments.loaded import LoadedRun, load_run
from bilevel.experiments.progress import progress
from bilevel.experiments.run_folder import Run, open_run
from bilevel.experiments.start_run import start_run
from bilevel.experiments.train import train

__all__ = [
    "LoadedRun",
    "Run",
    "checkpoint",
    "claim",
    "config",
    "digests",
    "environment",
    "launch",
    "load_config",
    "load_run",
    "new_directory",
    "open_run",
    "progress",
    "start_run",
    "train",
]
