"""What importing the package costs, what it offers, and that its examples hold."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import bilevel.datasets

SOURCES = sorted(Path(bilevel.datasets.__path__[0]).glob("*.py"))
MODULES = [name for _, name, _ in pkgutil.iter_modules(bilevel.datasets.__path__)]


def test_scikit_learn_is_not_imported():
    code = "import sys, bilevel.datasets; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_imports_jax():
    assert len(SOURCES) > 5
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            assert not any(n.split(".")[0] in ("jax", "optax", "flax") for n in names)


def test_every_public_name_exists():
    for name in bilevel.datasets.__all__:
        assert getattr(bilevel.datasets, name).__doc__
    assert bilevel.datasets.__all__ == sorted(bilevel.datasets.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example looks for a folder that must not exist
    module = importlib.import_module(f"bilevel.datasets.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
