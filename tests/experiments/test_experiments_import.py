"""Importing changes nothing and brings in nothing heavy."""

import subprocess
import sys
from pathlib import Path

import bilevel.experiments

CODE = """
import logging, signal, sys
import bilevel
root = logging.getLogger()
before = set(sys.modules), list(root.handlers), signal.getsignal(signal.SIGINT)
import bilevel.experiments
from bilevel.experiments import checkpoint, command_line, config, launch, progress
added = {name.partition(".")[0] for name in set(sys.modules) - before[0]}
assert not added & {"orbax", "matplotlib", "rich", "flax", "IPython"}, added
assert "orbax" not in sys.modules
assert "matplotlib" not in sys.modules
assert (list(root.handlers), signal.getsignal(signal.SIGINT)) == before[1:]
"""


def test_import_is_light_and_quiet():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(bilevel.experiments.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
