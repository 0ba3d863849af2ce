"""README's Python blocks run as they stand."""

import re
from pathlib import Path

import jax

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_code_blocks_run():
    assert BLOCKS, "README shows no Python"
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), {"__name__": "readme"})


def test_code_blocks_run_in_float32_too():
    with jax.enable_x64(False):
        test_code_blocks_run()
