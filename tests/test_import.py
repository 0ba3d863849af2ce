"""`import bilevel` is light, and what it leaves for later is there when asked for."""

import subprocess
import sys

import pytest

import bilevel


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_import_loads_neither_flax_nor_packages_that_need_it():
    run("""
import sys, bilevel
heavy = {"flax", "orbax", "matplotlib", "sklearn"}
heavy |= {f"bilevel.{name}" for name in ("energy", "quantized", "number_formats")}
heavy |= {"bilevel.experiments", "bilevel.datasets"}
found = heavy & set(sys.modules)
assert not found, found
assert bilevel.energy is sys.modules["bilevel.energy"]
assert bilevel.quantized is sys.modules["bilevel.quantized"]
""")


def test_every_public_name_is_found():
    run("""
import bilevel
from bilevel import energy, launch, load_run, number_formats, quantized
names = {name: getattr(bilevel, name) for name in bilevel.__all__}
assert set(bilevel.__all__) <= set(dir(bilevel))
assert callable(names["launch"]) and names["launch"] is bilevel.launch
""")


def test_other_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="'bilevel' has no attribute 'argmax'"):
        _ = bilevel.argmax  # pyright: ignore[reportAttributeAccessIssue]
