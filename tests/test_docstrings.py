"""The examples in docstrings run, and say what they print."""

import doctest
import importlib
import pkgutil
import sys

import pytest

import bilevel

# Those of datasets run in tests/datasets, which says why.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(bilevel.__path__, "bilevel.")
    if not module.name.endswith("__main__")
    and not module.name.startswith("bilevel.datasets")
)
# Rules called without jit compile operation by operation; each has tests of its own.
SLOW = {name for name in MODULES if name.startswith("bilevel.energy.")}
SLOW |= {"bilevel.number_formats.report"}


def examples_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    importlib.import_module(name)
    # The module itself: its package may have a function of the same name.
    result = doctest.testmod(sys.modules[name], optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_some():
    assert len(MODULES) > 100
    assert set(MODULES) >= SLOW


@pytest.mark.parametrize("name", [name for name in MODULES if name not in SLOW])
def test_examples_of_a_module(name, tmp_path, monkeypatch):
    examples_run(name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_examples_of_a_rule(name, tmp_path, monkeypatch):
    examples_run(name, tmp_path, monkeypatch)
