"""A folder that somebody sent: nothing is written elsewhere, nothing waits or ends."""

import json
import os
import shutil
import warnings

import jax.numpy as jnp
import pytest

from bilevel import load_run
from bilevel.__main__ import main
from bilevel.experiments import (
    config,
    environment,
    folders,
    logs,
    messages,
    open_run,
    plots,
    printable,
    runs,
    seal,
    starts,
)
from bilevel.experiments.folders import FolderError, claim

CFG = config.of(seed=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two finished runs."""
    top = tmp_path_factory.mktemp("received")
    for name in ("bad", "good"):
        claim(top / name, CFG)
        with open_run(top / name) as run:
            run.restore({"w": jnp.zeros(2)})
            for step in (1, 2):
                run.log(step, loss=3.0 - step)
            run.save(2, {"w": jnp.ones(2)}, force=True)
            run.finish({"loss": 1.0})
        logs.note(top / name, "done")
    return top


@pytest.fixture
def received(finished, tmp_path):
    """A copy of them, and a file that is nobody's business."""
    shutil.copytree(finished, tmp_path / "runs")
    (tmp_path / "outside").write_text("# mine\n")
    return tmp_path / "runs"


# -- links ----------------------------------------------------------------------------


# Every file and folder that is written to, or a path of its temporary file.
WRITTEN = [
    "log.txt",
    "metrics.jsonl",
    "digests.jsonl",
    "summary.json",
    "config.json",
    ".summary.json.tmp",
    ".lock",
    ".owner",
    ".gitignore",
    "data.json",
    "starts",
    "starts/2",
    "figures",
    "ckpt/2",
    "ckpt/2/leaves.json",
    "ckpt-set-aside",
]


def opened(path):
    with open_run(path) as run:
        run.restore({"w": jnp.zeros(2)})


USERS = {
    "claim": lambda path: claim(path, CFG),
    "open_run": opened,
    "load_run": load_run,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_no_link_is_followed(received, name):
    bad, outside = received / "bad", received.parent / "outside"
    path = bad / name
    if path.is_dir():
        shutil.rmtree(path)
        outside.unlink()
        outside.mkdir()
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(os.path.relpath(outside, path.parent))
    before = outside.lstat().st_mtime_ns
    for use in USERS.values():
        with pytest.raises(FolderError, match="it leads elsewhere") as caught:
            use(bad)
        assert f"{path} is a link to {outside}" in str(caught.value)
    assert outside.lstat().st_mtime_ns == before
    if outside.is_file():
        assert outside.read_text() == "# mine\n"
    else:
        assert not list(outside.iterdir())


def test_checkpoints_may_be_on_a_larger_disk_but_not_in_another_run(received, capsys):
    bad, good, disk = received / "bad", received / "good", received.parent / "disk"
    shutil.rmtree(bad / "ckpt")
    (bad / "ckpt").symlink_to(good / "ckpt")
    for use in USERS.values():
        with pytest.raises(FolderError, match=f"ckpt is a link to {good / 'ckpt'}"):
            use(bad)
    (bad / "ckpt").unlink()
    (good / "ckpt").rename(disk)
    (good / "ckpt").symlink_to(disk)
    assert load_run(good).steps == [0, 2]
    opened(good)
    assert f"checkpoints are in {disk}: " in capsys.readouterr().err
    (disk / "2" / "leaves.json").unlink()
    (disk / "2" / "leaves.json").symlink_to(received.parent / "outside")
    with pytest.raises(FolderError, match=r"leaves\.json is a link to"):
        opened(good)


def test_links_of_a_folder_that_is_no_run_yet(tmp_path):
    """A killed `claim` leaves such files; here somebody else did."""
    (tmp_path / "outside").write_text("# mine\n")
    (tmp_path / "a").mkdir()
    for name in (".gitignore", ".lock", ".config.json.tmp"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(FolderError, match="it leads elsewhere"):
        claim(tmp_path / "a", CFG)
    assert (tmp_path / "outside").read_text() == "# mine\n"


def test_links_within_a_folder_and_to_a_folder_are_fine(received):
    good = received / "good"
    (good / "best").symlink_to("ckpt/2")
    (received / "latest").symlink_to("good")
    for path in (good, received / "latest"):
        assert claim(path, CFG) == "finished"
        assert load_run(path).steps == [0, 2]


def test_only_regular_files_are_read(received):
    path = received / "bad" / "metrics.jsonl"
    path.unlink()
    os.mkfifo(path)  # a read would wait for ever
    for use in USERS.values():
        with pytest.raises(FolderError, match="is neither a file nor a folder"):
            use(received / "bad")


# -- listings -------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


def replace_file_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def hostile_config(path, value):
    content = json.loads(path.read_text()) | {"config": value}
    content["config_digest"] = config.dict_digest(value)
    path.write_text(json.dumps(content))


def text_as_metric(run):
    """In the sealed leaves.json of the last step."""
    path = run / "ckpt" / "2" / "leaves.json"
    content = json.loads(path.read_text()) | {"metric": "low"}
    path.write_text(json.dumps(content))
    from bilevel.datasets import manifest

    names = [one for one in manifest.read(path.parent) if one != "SHA256SUMS"]
    manifest.write(path.parent, names)


BAD = {
    "deep metrics": lambda run: (run / "metrics.jsonl").write_text(f"{DEEP}\n{{}}\n"),
    "deep summary": lambda run: (run / "summary.json").write_text(DEEP),
    "deep config": lambda run: (run / "config.json").write_text(DEEP),
    "list as config": lambda run: hostile_config(run / "config.json", []),
    "infinite step": lambda run: (run / "metrics.jsonl").write_text(
        '{"step": 1e999, "loss": 1}\n{"step": 1}\n'
    ),
    "text as time": lambda run: (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1, "time": "x"}\n'
    ),
    "text as metric": text_as_metric,
    "folder as metrics": lambda run: replace_file_by_folder(run / "metrics.jsonl"),
    "pipe as metrics": lambda run: replace_by_pipe(run / "metrics.jsonl"),
    "not utf-8": lambda run: (run / "config.json").write_bytes(b"\xff\xfe{"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_run_never_ends_a_listing(received, capsys, name):
    BAD[name](received / "bad")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = main(["runs", str(received), "--by=loss"])
    out = capsys.readouterr().out
    assert code == 0
    assert "\ngood " in out
    said = [str(one.message) for one in caught]
    is_listed = "\nbad " in out
    assert is_listed != any(one.startswith("left out: ") for one in said), said
    # Both are listed only where the table needs nothing of what is wrong.
    assert not is_listed or name == "text as metric"


# -- the terminal ---------------------------------------------------------------------

EVIL = "\x1b]0;X\x07\x1b[2J\nred\u202e\x9b"


def is_plain(text):
    return all(one.isprintable() or one == "\n" for one in text)


def test_nothing_recorded_reaches_the_terminal_as_it_is(received, capsys):
    hostile_config(received / "bad" / "config.json", {"seed": EVIL})
    line = {"step": 1, "loss": 0.5, EVIL: 1.0, "solver": EVIL}
    # As somebody would who means it: with a seal that fits.
    summary = received / "bad" / "summary.json"
    content = json.loads(summary.read_text())
    count = content["lines"]["metrics.jsonl"]
    metrics = received / "bad" / "metrics.jsonl"
    metrics.write_text(f"{json.dumps(line)}\n" * count)
    seal.write(received / "bad", summary.read_text())
    (received / "bad").rename(received / EVIL)
    assert main(["runs", str(received), "--by=loss"]) == 0
    out = capsys.readouterr().out
    assert is_plain(out)
    assert "seed" in out
    lines = out.splitlines()
    assert len(lines) == 5  # head, rule, two runs, and where the figure is
    assert main(["runs", str(received), "--by=none"]) == 2
    assert is_plain(capsys.readouterr().err)
    with pytest.raises(FolderError) as caught:
        claim(received / EVIL, CFG)
    assert 'seed: "\\u001b]0;X' in str(caught.value)


def test_figures_have_plain_labels():
    rows = [{"step": step, EVIL: 1.0} for step in (1, 2)]
    figure = plots.make({EVIL: rows, "b": rows}, [EVIL])
    (panel,) = figure.axes
    assert is_plain(panel.get_title())
    assert all(is_plain(one.get_text()) for one in panel.get_legend().get_texts())


def test_the_log_has_one_line_for_a_recorded_value(tmp_path, capsys):
    """An environment that was recorded elsewhere ended a line, and wrote another."""
    old, new = {"packages": {"jax": "x\ntouch PWNED #"}}, {"packages": {"jax": "1"}}
    lines = environment.difference(old, new, ["packages"])
    messages.warn(tmp_path, "since the run was started last:", lines)
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert "touch PWNED" in text
        assert not [one for one in text.splitlines() if one.startswith("touch")]


@pytest.mark.parametrize(
    "text", ["\x00", "\x7f", "\x9b", "\u2028", "\u202e", "\ud800", "\t", "\r"]
)
def test_printable(text):
    assert printable.line(f"a{text}b\nc").isprintable()
    assert printable.block(f"a{text}b\nc").count("\n") == 1
    assert printable.line("Grüße, 東京") == "Grüße, 東京"


def test_damaged_starts_are_named(received):
    folder = received / "bad" / "starts" / "1"
    folder.mkdir(parents=True)
    for name in ("command.json", "environment.json", "source.json"):
        (folder / name).write_text(DEEP)
    with pytest.raises(FolderError, match=r"command\.json is damaged"):
        starts.read_all(received / "bad")
    assert [one.name for one in runs.find(received)] == ["bad", "good"]
    assert folders.is_finished(received / "bad")
