"""The Python blocks of README and of the guide run as they stand, page by page."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bilevel import load_run
from bilevel.experiments import claim, config, open_run

ROOT = Path(__file__).parents[1]
GUIDE = sorted((ROOT / "examples" / "guide").glob("*.md"))
PAGES = {page.name: page for page in (ROOT / "README.md", *GUIDE)}


def blocks(name: str) -> list[str]:
    text = PAGES[name].read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def run_blocks(name: str) -> dict[str, Any]:
    found = blocks(name)
    assert found, f"{name} shows no Python"
    namespace = {"__name__": "readme"}
    for block in found:
        exec(compile(block, name, "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def _as_a_reader_has_it():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(name)])
def test_code_blocks_run(name: str):
    run_blocks(name)


def test_readme_links_every_page_and_every_link_is_a_file():
    text = PAGES["README.md"].read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)#]+)\)", text))
    assert {f"examples/guide/{page.name}" for page in GUIDE} <= linked
    assert not [x for x in linked if "://" not in x and not (ROOT / x).is_file()]


def test_main_of_the_guide_trains(tmp_path):
    cfg = config.of(seed=0, num_steps=12, learning_rate=0.1)
    claim(tmp_path / "a", cfg)
    with open_run(tmp_path / "a") as run:
        run_blocks("experiments.md")["main"](cfg, run)
    found = load_run(tmp_path / "a")
    steps, values = found.column("value")
    assert steps == list(range(1, 13))
    assert values[-1] < values[0]
    penalties = found.state()[".outer"]
    assert found.summary is not None
    np.testing.assert_array_equal(found.summary["result"]["penalties"], penalties)
