"""What cannot be tried here: the workflows on GitHub name things that exist."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which comes with flax")

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
READ_ONLY = {"contents": "read"}


def load(name: str) -> dict[Any, Any]:
    content = yaml.safe_load((ROOT / ".github" / name).read_text())
    # In YAML 1.1, which PyYAML reads, the key `on` is the value true.
    return {"on" if key is True else key: value for key, value in content.items()}


def commands(workflow: dict[Any, Any]) -> list[str]:
    jobs = workflow["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_commands_name_what_exists(path):
    text = "\n".join(commands(load(f"workflows/{path.name}")))
    files = re.findall(r"(?<![\w/])(?:\.ci|tests)/[\w./-]+|[\w-]+\.(?:lock|toml)", text)
    assert not [name for name in files if not (ROOT / name).is_file()]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = set(re.findall(r"\.\[(\w+)\]", text))
    assert extras <= set(pyproject["project"]["optional-dependencies"])
    assert files or extras


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_do_little(path):
    workflow = load(f"workflows/{path.name}")
    assert workflow["permissions"] == READ_ONLY
    assert "secrets" not in path.read_text()
    assert "://" not in path.read_text()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all("@" in step["uses"] for step in job["steps"] if "uses" in step)


def test_every_contract_runs_on_every_version():
    """A new family is not forgotten where `.ci/run` makes a choice of tests."""
    (listed,) = re.findall(
        r"^other_versions=\((.*?)^\)", (ROOT / ".ci" / "run").read_text(), re.M | re.S
    )
    chosen = [ROOT / path for path in listed.split()]
    assert all(path.exists() for path in chosen)
    contracts = sorted((ROOT / "tests").rglob("test_*contract*.py"))
    # The same rules and solvers as their contracts, on other problems.
    contracts = [c for c in contracts if c.name != "test_problem_contracts.py"]
    # Families whose contract stands in a file of another name.
    for name in ("energy/test_learning_rules", "inner_solvers/test_inner_solvers"):
        contracts.append(ROOT / "tests" / f"{name}.py")
    assert len(contracts) > 5
    for contract in contracts:
        assert {contract, *contract.parents} & set(chosen), contract


def test_weekly_installs_the_newest():
    workflow = load("workflows/weekly.yml")
    assert set(workflow["on"]) == {"schedule", "workflow_dispatch"}
    assert "requirements.lock" not in "\n".join(commands(workflow))
    jobs = workflow["jobs"]
    assert {
        name: job.get("continue-on-error", False) for name, job in jobs.items()
    } == {
        "newest": False,
        "prerelease": True,
    }


def test_release_publishes_what_was_tested():
    workflow = load("workflows/release.yml")
    jobs = workflow["jobs"]
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    assert [jobs[name].get("needs") for name in ("publish", "announce")] == [
        "build",
        "publish",
    ]
    assert jobs["publish"]["environment"] == "release"
    given = {name: job.get("permissions", READ_ONLY) for name, job in jobs.items()}
    assert given == {
        "build": READ_ONLY,
        "publish": {"id-token": "write"},
        "announce": {"contents": "write"},
    }
    tests = [step for step in jobs["build"]["steps"] if "pytest" in step.get("run", "")]
    assert [step["env"] for step in tests] == [{"BILEVEL_DIST": "dist"}]


def test_dependabot_looks_every_week():
    updates = load("dependabot.yml")["updates"]
    assert {one["package-ecosystem"] for one in updates} == {"github-actions", "pip"}
    assert all(one["schedule"] == {"interval": "weekly"} for one in updates)
    assert all(one["groups"] for one in updates)


CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-01-31

### Added

- A thing.

## [1.1.0] - 2025-12-01
"""


def check_release(folder: Path, tag: str, version: str) -> subprocess.CompletedProcess:
    (folder / "CHANGELOG.md").write_text(CHANGELOG)
    (folder / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "check_release.py", tag],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_release_prints_its_notes(tmp_path):
    done = check_release(tmp_path, "v1.2.0", "1.2.0")
    assert (done.returncode, done.stdout) == (0, "### Added\n\n- A thing.\n")


@pytest.mark.parametrize(
    ("tag", "version", "message"),
    [
        ("v1.2.1", "1.2.0", "the tag v1.2.1 is not v1.2.0, as pyproject.toml says"),
        ("1.2.0", "1.2.0", "the tag 1.2.0 is not v1.2.0, as pyproject.toml says"),
        ("v1.3.0", "1.3.0", "CHANGELOG.md has no section '## [1.3.0] - <date>'"),
        ("v1.1.0", "1.1.0", "the section of 1.1.0 in CHANGELOG.md is empty"),
    ],
)
def test_release_refuses(tmp_path, tag, version, message):
    done = check_release(tmp_path, tag, version)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {message}\n"


def test_changelog_can_be_released():
    """Its first section collects what comes next, in the form that a release has."""
    headings = re.findall(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "## [Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading)
