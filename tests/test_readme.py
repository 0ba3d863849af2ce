"""README's Python blocks run as they stand, one after the other."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bilevel import load_run
from bilevel.experiments import claim, config, open_run

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def run_blocks() -> dict[str, Any]:
    assert BLOCKS, "README shows no Python"
    namespace = {"__name__": "readme"}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def _as_a_reader_has_it():
    with jax.enable_x64(False):
        yield


def test_code_blocks_run_and_main_trains(tmp_path):
    cfg = config.of(seed=0, num_steps=12, learning_rate=0.1)
    claim(tmp_path / "a", cfg)
    with open_run(tmp_path / "a") as run:
        run_blocks()["main"](cfg, run)
    found = load_run(tmp_path / "a")
    steps, values = found.column("value")
    assert steps == list(range(1, 13))
    assert values[-1] < values[0]
    penalties = found.state()[".outer"]
    assert found.summary is not None
    np.testing.assert_array_equal(found.summary["result"]["penalties"], penalties)
