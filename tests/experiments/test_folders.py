"""Who may use a folder, and what is refused."""

import dataclasses
import json
import pathlib

import pytest
from absl.flags import FlagValues

from bilevel import datasets
from bilevel.__main__ import main
from bilevel.experiments import (
    config,
    folders,
    launch,
    load_config,
    load_run,
    open_run,
    reproduce,
    runs,
    start_run,
)
from bilevel.experiments.folders import (
    FolderError,
    claim,
    new_directory,
    read_config,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    rate: float = 0.1
    widths: tuple[int, ...] = (2, 3)


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "a"
    assert claim(directory, Config()) == "new"
    return directory


def test_new_directories_never_collide(tmp_path):
    made = [new_directory("ridge", tmp_path / "runs") for _ in range(3)]
    assert len(set(made)) == 3
    assert all(one.is_dir() and one.name.startswith("ridge-20") for one in made)


def test_record_of_a_new_run(tmp_path):
    directory = tmp_path / "deep" / "a"
    assert claim(directory, Config(), source="# text") == "new"
    assert json.loads((directory / "config.json").read_text()) == {
        "format_version": 1,
        "config": {"rate": 0.1, "widths": [2, 3]},
        "config_digest": config.digest(Config()),
        "config_class": f"{__name__}.Config",
    }
    assert read_config(directory) == {"rate": 0.1, "widths": [2, 3]}
    assert (directory / "config.py.txt").read_text() == "# text"
    names = {"config.json", "config.py.txt", ".gitignore", ".lock"}
    assert {one.name for one in directory.iterdir()} == names


def test_status(folder):
    assert claim(folder, Config()) == "unfinished"
    assert claim(folder, Config(widths=[2, 3])) == "unfinished"  # equal once checked
    (folder / "summary.json").write_text("{}")
    assert claim(folder, Config()) == "finished"


def test_other_config_is_refused(folder):
    with pytest.raises(FolderError) as caught:
        claim(folder, Config(rate=0.05, widths=()))
    assert str(caught.value) == (
        f"{folder} holds a run with another configuration (field: stored -> given):"
        "\n  rate: 0.1 -> 0.05"
        "\n  widths: [2, 3] -> []"
        "\ngive the stored values to resume it, or another --workdir"
    )


def test_folder_that_is_no_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("")
    with pytest.raises(FolderError, match="a holds files but no run"):
        claim(tmp_path / "a", Config())
    with pytest.raises(FolderError, match="is a file; give another --workdir"):
        claim(tmp_path / "a" / "thesis.tex", Config())


def test_claim_killed_half_way(tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"conf')
    (tmp_path / "config.py.txt").write_text("# text")
    assert claim(tmp_path, Config()) == "new"


def test_config_changed_by_hand(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(FolderError, match=r"config\.json was changed: its values"):
        claim(folder, Config(rate=0.2))
    path.write_text('{"config": ')
    with pytest.raises(FolderError, match=r"config\.json is damaged"):
        claim(folder, Config())
    with pytest.raises(FolderError, match=r"is no run: it has no config\.json"):
        read_config(folder.parent)


@pytest.mark.parametrize("make", [claim, lambda folder, _: new_directory("a", folder)])
def test_folder_that_cannot_be_written(make):
    # Even root cannot make a folder here.
    folder = pathlib.Path("/proc/bilevel")
    with pytest.raises(
        FolderError, match="cannot write to /proc/bilevel: it is gone or"
    ):
        make(folder, Config())


def test_two_processes_that_claim_at_once(tmp_path, monkeypatch):
    """The one that is second compares; it does not write over the first one's."""
    directory = tmp_path / "a"
    others = iter([config.of(seed=1)])
    lock = folders.locked

    def slower(path):
        for other in others:
            assert claim(path, other) == "new"
        return lock(path)

    monkeypatch.setattr(folders, "locked", slower)
    with pytest.raises(FolderError, match="seed: 1 -> 2"):
        claim(directory, config.of(seed=2))
    assert read_config(directory) == {"seed": 1}


# -- ~ and addresses ------------------------------------------------------------------


def start(directory):
    with start_run(Config(), directory):
        pass


def launched(flag):
    def main(directory):
        argv = ["x.py", f"--{flag}={directory}"]
        with pytest.raises(SystemExit) as caught:
            launch(lambda cfg, run: None, Config(), argv=argv, flag_values=FlagValues())
        if caught.value.code:
            raise FolderError("said on standard error")

    return main


# Whatever takes a folder.
TAKERS = {
    "claim": lambda path: claim(path, Config()),
    "new_directory": lambda path: new_directory("a", path),
    "open_run": lambda path: open_run(path).__enter__(),
    "data_dir": lambda path: open_run(".", data_dir=path).__enter__(),
    "start_run": start,
    "load_run": load_run,
    "runs": lambda path: runs.collect(path, "loss"),
    "reproduce": lambda path: reproduce.reproduce(path),
    "datasets.find": lambda path: datasets.find(path, "mnist"),
    "manifest.write": datasets.manifest.write,
    "manifest.read": datasets.manifest.read,
    "manifest.check": datasets.manifest.check,
    "load_config": load_config,
    "--workdir": launched("workdir"),
    "--data_dir": launched("data_dir"),
    "--config": launched("config"),
}


@pytest.mark.parametrize("address", ["gs://bucket/a", pathlib.Path("s3://bucket/a")])
@pytest.mark.parametrize("taker", TAKERS)
def test_an_address_is_refused_in_one_sentence(
    tmp_path, monkeypatch, capsys, taker, address
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is no local path|said on") as caught:
        TAKERS[taker](address)
    said = f"{caught.value}\n{capsys.readouterr().err}"
    assert f"{address} is no local path: remote folders are not supported" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_home_is_expanded(tmp_path, monkeypatch, capsys):
    """A shell does not, in `--workdir=~/a`."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    launched("workdir")("~/a")
    assert (home / "a" / "config.json").exists()
    start("~/c")
    assert claim("~/d", Config()) == "new"
    new_directory("e", "~/runs")
    assert load_run("~/c").directory == home / "c"
    with open_run("~/d", data_dir="~/data") as run:
        assert run.directory == home / "d"
        assert run.data_dir == home / "data"
        run.log(1, loss=0.5)
    assert main(["runs", "~", "--by=loss", "--figure=~/figure.png"]) == 0
    assert (home / "figure.png").exists()
    names = {one.name for one in home.iterdir() if not one.name.startswith(".")}
    assert names == {"a", "c", "d", "runs", "figure.png"}
    assert not list(here.iterdir())
    with pytest.raises(FolderError, match="~nobody-here/a: "):
        claim("~nobody-here/a", Config())
