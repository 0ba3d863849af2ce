"""The table of runs, and the command line around it."""

import dataclasses
import math
import shutil

import pytest

from bilevel.__main__ import main
from bilevel.experiments import runs
from bilevel.experiments.folders import FolderError, claim
from bilevel.experiments.run_folder import open_run


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    rate: float = 0.1
    steps: int = 3
    rule: str = "implicit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("runs")
    for name, rate, losses in (
        ("a", 0.1, [3.0, 2.0, 2.5]),
        ("deep/b", 0.2, [3.0, 1.0, math.nan]),
        ("c", 0.1, []),
    ):
        rule = "nudged" if name == "c" else "implicit"
        claim(top / name, Config(rate=rate, rule=rule))
        with open_run(top / name) as run:
            for step, loss in enumerate(losses, start=1):
                run.log(step, loss=loss, accuracy=-loss, solver="cg")
            if name == "a":
                run.finish({})
    return top


def test_sorted_by_the_best(folder):
    rows = runs.collect(folder, "loss")
    assert [row.name for row in rows] == ["deep/b", "a", "c"]
    assert [row.best for row in rows[:2]] == [1.0, 2.0]
    assert rows[1].last == 2.5
    assert math.isnan(rows[0].last)
    assert [row.status for row in rows] == ["step 3", "finished", "step 0"]
    rows = runs.collect(folder, "accuracy", highest=True)
    assert [row.name for row in rows] == ["deep/b", "a", "c"]


def test_only_fields_that_differ(folder):
    rows = runs.collect(folder, "loss")
    assert runs.differing(rows) == ["rate", "rule"]
    assert runs.differing(rows[:1]) == []


def test_table(folder, capsys):
    assert main(["runs", str(folder), "--by=loss"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == (
        ["run", "rate", "rule", "best", "loss", "last", "status", "seconds"]
    )
    assert lines[2].split()[:5] == ["deep/b", "0.2", "implicit", "1", "nan"]
    assert lines[3].split()[:6] == ["a", "0.1", "implicit", "2", "2.5", "finished"]
    assert lines[-1] == f"curves in {folder / 'runs.png'}"
    assert (folder / "runs.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes(folder, tmp_path, capsys):
    assert main(["runs", str(folder), "--by=los"]) == 2
    said = capsys.readouterr().err
    assert "has logged 'los'; there are accuracy, loss, solver, step, time" in said
    with pytest.raises(FolderError, match="there is no run in"):
        runs.collect(tmp_path, "loss")


@pytest.mark.thorough
def test_environment_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    golden = tmp_path / "golden.json"
    assert main(["environment", f"--write={golden}"]) == 0
    # Without a lock file: said, and under --strict an error.
    assert main(["environment", f"--golden={golden}"]) == 0
    assert "no requirements.lock above this folder" in capsys.readouterr().out
    assert main(["environment", f"--golden={golden}", "--strict"]) == 1
    (tmp_path / "requirements.lock").write_text("jax==0.0.1\n")
    assert main(["environment", f"--golden={golden}"]) == 0
    said = capsys.readouterr().out
    assert (
        "1 packages in other versions than the lock file\n  jax: locked 0.0.1" in said
    )
    golden.write_text(golden.read_text().replace("4070199207", "4070199208"))
    assert main(["environment", f"--golden={golden}"]) == 1
    assert "numbers: prng_bits: 1 of 64 values differ" in capsys.readouterr().out
    (tmp_path / "requirements.lock").write_text("jax>=0.1\n")
    assert main(["environment"]) == 2
    assert "expected 'name==version ; marker'" in capsys.readouterr().err


def test_a_damaged_run_is_left_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "runs")
    (tmp_path / "runs" / "model").mkdir()
    (tmp_path / "runs" / "model" / "config.json").write_text('{"layers": 3}')
    with pytest.warns(UserWarning, match=r"left out: (?s:.*)config\.json is damaged"):
        rows = runs.collect(tmp_path / "runs", "loss")
    assert len(rows) == len(runs.collect(folder, "loss"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(FolderError, match=r"no run in .* that can be read"),
    ):
        runs.collect(tmp_path / "other", "loss")
