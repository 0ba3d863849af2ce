"""A recorded run without a command line."""

import logging
import signal
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import jax.numpy as jnp
import pytest

from bilevel import load_run
from bilevel.experiments import config, folders, reproduce, start_run

CFG = config.of(seed=0)
STATE = {"x": jnp.ones(2)}


def notebook(cells, monkeypatch):
    """Makes this process look like the kernel of a notebook."""
    shell = types.SimpleNamespace(user_ns={"In": cells})
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)


@pytest.mark.thorough
def test_start_is_recorded_and_resumed(tmp_path, capsys):
    folder = tmp_path / "a"
    with start_run(CFG, folder, save_every=7, data_dir=tmp_path) as run:
        assert run.data_dir == tmp_path
        run.restore(STATE)
        run.save(1, STATE, force=True)
    assert f"new run in {folder}" in capsys.readouterr().err
    with start_run(CFG, str(folder)) as run:
        assert run.restore(STATE)[1] == 1
    said = capsys.readouterr().err
    assert f"unfinished run in {folder}" in said
    loaded = load_run(folder)
    assert loaded.config == {"seed": 0}
    first, second = loaded.starts
    assert first.command["argv"] == sys.argv
    assert first.command["is_launched"] is False
    assert first.command["flags"]["save_every"] == 7
    assert second.environment["packages"]["jax"]
    assert "new run in" in (folder / "log.txt").read_text()


def test_finished_run_is_not_started_again(tmp_path):
    with start_run(CFG, tmp_path / "a") as run:
        run.restore(STATE)
        run.finish({})
    with start_run(CFG, tmp_path / "a") as run:
        assert run.restore(STATE)[1] == 0
    assert len(load_run(tmp_path / "a").starts) == 1


def test_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with start_run(CFG) as run:
        assert run.directory.parent == Path("runs").absolute()


def test_cells_of_a_notebook_are_its_program(tmp_path, monkeypatch):
    notebook(["", "import bilevel", "run_with(cfg)"], monkeypatch)
    with start_run(CFG, tmp_path / "a") as run:
        run.log(1, loss=0.5)
    text = (tmp_path / "a" / "starts" / "1" / "cells.py.txt").read_text()
    assert text == "# In [1]:\nimport bilevel\n\n# In [2]:\nrun_with(cfg)\n"
    with pytest.raises(
        reproduce.ReproduceError, match=r"not made by bilevel\.launch but"
    ):
        reproduce.reproduce(tmp_path / "a")


def test_bad_input(tmp_path):
    with (
        pytest.raises(config.ConfigError, match="expected an instance of a dataclass"),
        start_run({"seed": 0}, tmp_path / "a"),
    ):
        pass
    assert not (tmp_path / "a").exists()
    with start_run(CFG, tmp_path / "a"):
        pass
    with (
        pytest.raises(folders.FolderError, match="seed: 0 -> 1"),
        start_run(config.of(seed=1), tmp_path / "a"),
    ):
        pass


def test_log_and_figure(tmp_path):
    with start_run(CFG, tmp_path / "a") as run:
        run.log(1, loss=0.5)
        logging.getLogger("somebody").warning("disk is slow")
        run.finish({})
    assert "disk is slow" in (tmp_path / "a" / "log.txt").read_text()
    assert (tmp_path / "a" / "figures" / "metrics.png").exists()


@pytest.mark.thorough
def test_program_is_that_of_the_script(tmp_path):
    program = tmp_path / "script.py"
    program.write_text(SCRIPT)
    command = [sys.executable, str(program), str(tmp_path / "a")]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "a/starts/1/program.py.txt").read_text() == SCRIPT


SCRIPT = """
import sys
from bilevel.experiments import config, start_run
with start_run(config.of(seed=0), sys.argv[1]) as run:
    run.log(1, loss=0.5)
"""


@pytest.mark.parametrize("is_notebook", [False, True])
def test_signal_of_a_scheduler_ends_a_script(
    tmp_path, monkeypatch, capsys, is_notebook
):
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if is_notebook:
        notebook(["run()"], monkeypatch)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the kernel's own
    try:
        with pytest.raises(SystemExit) if not is_notebook else nullcontext() as caught:
            with start_run(CFG, tmp_path / "a") as run:
                run.restore(STATE)
                run.save(3, STATE, force=True)
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if not is_notebook:
        assert caught.value.code == 143
        assert "ended by SIGTERM; the same script resumes" in capsys.readouterr().err
    assert load_run(tmp_path / "a").steps == [0, 3]
