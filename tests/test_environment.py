"""The project's one test of its environment; a repository of yours can have the same.

Other versions than those of the lock file are a warning: the suite is also run on the
oldest and the newest ones. A flag or a number that moved is a failure.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bilevel.experiments import environment

LOCK = Path(__file__).parents[1] / "requirements.lock"


@pytest.mark.filterwarnings("default::bilevel.experiments.environment.EnvironmentDrift")
def test_environment():
    # The suite runs with x64, which is one of the flags: see conftest.py.
    with jax.enable_x64(False):
        environment.check(LOCK)


@pytest.mark.thorough
def test_a_flag_fails_it():
    test = f"{Path(__file__).name}::test_environment"
    options = ("-q", "-n0", "-p", "no:cacheprovider")
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, test],
        cwd=Path(__file__).parent,
        env={**variables, "JAX_THREEFRY_PARTITIONABLE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "EnvironmentMismatch: the environment has changed:" in done.stdout
    moved = "jax_threefry_partitionable is False, was True"
    assert f"  flag {moved}\n" in done.stdout
    assert "  numbers: split: 8 of 8 values differ" in done.stdout
    assert f"  numbers changed; what moved: {moved}\n" in done.stdout
