"""The folder of a run: what is written, what is kept on resume, what is refused."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.experiments import config
from bilevel.experiments.run_folder import (
    FolderError,
    claim,
    is_finished,
    keep_lines,
    new_directory,
    open_run,
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


def lines(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_new_directories_never_collide(tmp_path):
    made = [new_directory("ridge", tmp_path / "runs") for _ in range(3)]
    assert len(set(made)) == 3
    assert all(one.is_dir() and one.name.startswith("ridge-20") for one in made)


def test_record_of_a_new_run(tmp_path):
    directory = tmp_path / "deep" / "a"
    argv = ["x.py", "--config=a.py"]
    assert claim(directory, Config(), source="# text", argv=argv) == "new"
    assert json.loads((directory / "config.json").read_text()) == {
        "format_version": 1,
        "config": {"rate": 0.1, "widths": [2, 3]},
        "config_digest": config.digest(Config()),
        "argv": argv,
    }
    assert (directory / "config.py.txt").read_text() == "# text"
    assert {one.name for one in directory.iterdir()} == {"config.json", "config.py.txt"}


def test_status(folder):
    assert claim(folder, Config()) == "unfinished"
    assert claim(folder, Config(widths=[2, 3])) == "unfinished"  # equal once checked
    with open_run(folder) as run:
        run.finish({"loss": 0.5})
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


def test_log_values(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5, solver="cg", count=3, done=True, nothing=None)
        run.log(
            np.int64(2),
            array=jnp.asarray(0.25, jnp.bfloat16),
            vector=jnp.arange(2),
            scalar=np.float32(1.5),
        )
        run.log(step=3, nan=jnp.nan, up=math.inf, down=-np.inf)
        assert len(lines(folder)) == 3  # on the disk before the run closes
    assert lines(folder) == [
        {"step": 1, "loss": 0.5, "solver": "cg", "count": 3, "done": True}
        | {"nothing": None},
        {"step": 2, "array": 0.25, "vector": [0, 1], "scalar": 1.5},
        {"step": 3, "nan": "NaN", "up": "Infinity", "down": "-Infinity"},
    ]
    assert math.isnan(float(lines(folder)[2]["nan"]))
    assert float(lines(folder)[2]["down"]) == -math.inf


def test_log_refuses_what_json_lacks(folder):
    with (
        open_run(folder) as run,
        pytest.raises(ValueError, match=r"metrics\.data\.x is a object, which JSON"),
    ):
        run.log(1, data={"x": object()})
    assert not (folder / "metrics.jsonl").exists()


def test_finish(folder):
    with open_run(folder) as run:
        run.save(7, {"x": jnp.ones(2)}, force=True)
        run.finish({"loss": jnp.float32(0.5), "digest": "ab", "best": [1, math.nan]})
        assert (folder / "ckpt" / "7").is_dir()  # complete before the run is
    assert is_finished(folder)
    assert json.loads((folder / "summary.json").read_text()) == {
        "status": "finished",
        "loss": 0.5,
        "digest": "ab",
        "best": [1, "NaN"],
    }


def test_paths(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with open_run("a", data_dir="data") as run:
        assert run.directory == folder
        assert str(run.data_dir) == "data"
        run.path("figures/loss.txt").write_text("figure")
        monkeypatch.chdir("/")
        run.log(1)
    assert (folder / "figures" / "loss.txt").read_text() == "figure"
    assert lines(folder) == [{"step": 1}]
    with open_run(folder) as run:
        assert run.data_dir is None


def test_resume_drops_later_and_broken_lines(folder):
    state = {"x": jnp.zeros(())}
    with open_run(folder, save_every=2) as run:
        assert run.restore(state) is None
        for step in range(1, 6):
            run.log(step, loss=step)
            assert run.save(step, {"x": jnp.asarray(step, float)}) == (step % 2 == 0)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with open_run(folder, save_every=2) as run:
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
        found, step = run.restore(state)
        assert (float(found["x"]), step) == (4.0, 4)
        run.log(5, loss=50)
        assert not run.save(5, state)
    assert lines(folder) == [{"step": s, "loss": s} for s in range(1, 5)] + [
        {"step": 5, "loss": 50}
    ]


def test_start_again_without_checkpoint(folder):
    with open_run(folder) as run:
        run.log(1, loss=0.5)
        run.log(2, loss=0.4)
    with open_run(folder) as run:
        assert len(lines(folder)) == 2  # opening changes nothing
        run.log(1, loss=0.5)
    assert lines(folder) == [{"step": 1, "loss": 0.5}]


def test_writing_before_restore_is_refused(folder):
    state = {"x": jnp.zeros(())}
    with open_run(folder) as run:
        run.log(3, loss=0.5)
        run.save(3, state, force=True)
    with open_run(folder) as run:
        match = r"holds step 3: call run\.restore\(template\) before run\.log"
        with pytest.raises(RuntimeError, match=match):
            run.log(1, loss=0.5)
        with pytest.raises(RuntimeError, match=match):
            run.save(1, state)
        run.restore(state)
        run.log(4, loss=0.4)
    assert [line["step"] for line in lines(folder)] == [3, 4]


def test_keep_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    keep_lines(path, 3)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 4}\n{"step": 2}')
    keep_lines(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(FolderError, match=r"line 2 of .*metrics\.jsonl is broken"):
        keep_lines(path, 2)
