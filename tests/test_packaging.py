"""The requirements and their lock, and the commands and paths in README."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK_LINES = (ROOT / "requirements.lock").read_text().splitlines()
PYTHONS = ("3.11.7", "3.13.0")


def holds(marker: Marker | None, python: str) -> bool:
    environment = {
        **default_environment(),
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
    }
    return marker is None or marker.evaluate(environment)


def direct_requirements() -> list[Requirement]:
    """Dependencies and the `dev` extra, with `bilevel[extra]` replaced by its lines."""
    extras = PROJECT["optional-dependencies"]
    pending = [*PROJECT["dependencies"], *extras["dev"]]
    found = []
    while pending:
        requirement = Requirement(pending.pop(0))
        if requirement.name == PROJECT["name"]:
            pending += [line for extra in requirement.extras for line in extras[extra]]
        else:
            found.append(requirement)
    return found


def fenced_lines() -> list[str]:
    blocks = re.findall(
        r"^ *```[^\n]*\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    return [line.strip() for block in blocks for line in block.splitlines()]


def where_is_paths() -> list[str]:
    """Backticked paths in the rows of README's table 'Where is ...?'."""
    readme = (ROOT / "README.md").read_text()
    section = re.search(r"^#+ *Where is.*?(?=^#|\Z)", readme, re.M | re.S | re.I)
    assert section, "README has no section 'Where is ...?'"
    rows = [line for line in section[0].splitlines() if line.lstrip().startswith("|")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [
        text
        for text in quoted
        if re.fullmatch(r"[\w.-]+(/[\w.*-]+)*/?", text)
        and ("/" in text or text.endswith((".lock", ".md", ".py", ".toml")))
    ]


def test_lock_has_no_address_and_no_option():
    assert LOCK_LINES
    for line in LOCK_LINES:
        assert "://" not in line
        assert " @ " not in line
        assert re.match(r"[A-Za-z0-9]", line), f"not a requirement: {line!r}"
        assert " --" not in line
        assert not line.endswith("\\")


def test_lock_pins_exactly():
    for line in LOCK_LINES:
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert "*" not in specifier.version, line
        assert not requirement.extras, "pip takes no extras in a constraint file"


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_names_everything_once(python):
    names = [
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, LOCK_LINES)
        if holds(requirement.marker, python)
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("direct", direct_requirements(), ids=lambda r: r.name)
def test_lock_satisfies_pyproject(direct, python):
    pins = [
        locked.specifier
        for locked in map(Requirement, LOCK_LINES)
        if canonicalize_name(locked.name) == canonicalize_name(direct.name)
        and holds(locked.marker, python)
    ]
    assert len(pins) == holds(direct.marker, python)
    for pin in pins:
        (specifier,) = pin
        assert direct.specifier.contains(specifier.version)


def test_dependencies_have_floors_and_no_ceilings():
    for line in PROJECT["dependencies"]:
        operators = [s.operator for s in Requirement(line).specifier]
        assert operators.count(">=") == 1, line
        assert set(operators) <= {">=", "!="}, line


@pytest.mark.parametrize("what", ["-m pytest", "examples/data_cleaning.py"])
def test_readme_has_one_command_for(what):
    commands = [line for line in fenced_lines() if what in line]
    assert len(commands) == 1, f"expected one line with {what!r}, got {commands}"
    assert commands[0].startswith("python3 -m venv ")


def test_readme_paths_exist():
    paths = where_is_paths()
    assert paths, "README's table 'Where is ...?' names no path"
    missing = [path for path in paths if not list(ROOT.glob(path))]
    assert not missing
