"""Metrics: lines written, read back, cut short by a kill, and dropped on resume."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.datasets import files
from bilevel.experiments import metrics
from bilevel.experiments.metrics import MetricsError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write_steps(path, steps=(1, 2, 3)):
    for step in steps:
        files.append(path, metrics.line(step, step / 4, {"loss": 0.5 * step}))


def test_append(path):
    files.append(
        path, metrics.line(np.int64(1), 0.12345, {"loss": jnp.float32(0.5), "n": 3})
    )
    files.append(path, metrics.line(2, 1, {}))
    assert path.read_text() == (
        '{"step": 1, "time": 0.123, "loss": 0.5, "n": 3}\n{"step": 2, "time": 1}\n'
    )
    assert metrics.read(path) == [
        {"step": 1, "time": 0.123, "loss": 0.5, "n": 3},
        {"step": 2, "time": 1},
    ]


KILLED = """
import os, runpy, signal, sys
append = runpy.run_path(sys.argv[1])["append"]
for step in (1, 2, 3):
    append(sys.argv[2], '{"step": %d}\\n' % step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_after_append_loses_nothing(path):
    # The file alone, without the package and JAX.
    command = [sys.executable, "-c", KILLED, files.__file__, str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [line["step"] for line in metrics.read(path)] == [1, 2, 3]


@pytest.mark.parametrize("name", metrics.RESERVED)
def test_reserved_names(path, name):
    with pytest.raises(MetricsError, match=f"cannot be named '{name}'"):
        files.append(path, metrics.line(1, 0.0, {"loss": 1.0, name: 2}))
    assert not path.exists()


def test_what_json_lacks_is_refused_whole(path):
    write_steps(path, [1])
    before = path.read_bytes()
    with pytest.raises(MetricsError, match=r"^metrics\.b\.c\[1\] is a set, which JSON"):
        files.append(path, metrics.line(2, 0.0, {"a": 1.0, "b": {"c": [1, {2}]}}))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (np.bool_(True), True),
        (3, 3),
        (10**30, 10**30),
        (np.int64(2**62), 2**62),
        (0.1, 0.1),
        (np.float32(0.1), 0.10000000149011612),
        (jnp.asarray(0.25, jnp.bfloat16), 0.25),
        (jnp.arange(3), [0, 1, 2]),
        (np.zeros((2, 0)), [[], []]),
        ("cg", "cg"),
        ((1, [2.0, "a"]), [1, [2.0, "a"]]),
        ({"a": {1: jnp.ones(())}}, {"a": {"1": 1.0}}),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-np.float32(np.inf), "-Infinity"),
        (jnp.array([0.0, -jnp.inf]), [0.0, "-Infinity"]),
    ],
)
def test_plain(value, expected):
    found = metrics.plain(value, "x")
    assert found == expected
    assert type(found) is type(expected)
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1j, "complex"),
        (b"x", "bytes"),
        ({1}, "set"),
        (Path("a"), "PosixPath"),
        (jax.random.key(0), "PRNGKeyArray"),
        (np.array([object()])[0], "object"),
    ],
)
def test_what_has_no_json(value, kind):
    with pytest.raises(MetricsError, match=f"x is a {kind}, which JSON cannot hold"):
        metrics.plain(value, "x")


def test_special_values_come_back(path):
    values = {
        "nan": math.nan,
        "up": jnp.inf,
        "down": -math.inf,
        "minus_zero": -0.0,
        "tiny": 5e-324,
        "third": 1 / 3,
        "vector": jnp.array([1.0, jnp.nan]),
        "nested": {"deep": [{"er": math.inf}]},
        "text": "a line\nwith \u2028 and é",
        "number": "3",
    }
    files.append(path, metrics.line(1, 0.0, values))
    assert len(path.read_bytes().splitlines()) == 1
    (line,) = metrics.read(path)
    for name in ("up", "down", "minus_zero", "tiny", "third", "text", "number"):
        assert line[name] == values[name]
        assert isinstance(line[name], type(values[name]))
    assert math.copysign(1, line["minus_zero"]) == -1
    assert math.isnan(line["nan"])
    assert line["vector"][0] == 1.0
    assert math.isnan(line["vector"][1])
    assert line["nested"] == {"deep": [{"er": math.inf}]}


def test_no_file(path):
    assert metrics.read(path) == []
    assert metrics.split(path, 3) == ([], [], [], [], 0.0)
    assert not path.exists()
    path.touch()
    assert metrics.read(path) == []


def test_a_file_cut_short_at_any_byte(path):
    write_steps(path)
    whole = path.read_bytes()
    ends = [i + 1 for i, one in enumerate(whole) if one == ord("\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        # A line counts when it is whole but for its line feed.
        count = sum(length >= end - 1 for end in ends)
        assert [line["step"] for line in metrics.read(path)] == [1, 2, 3][:count]
        found = metrics.split(path, 3)
        assert found.seconds == [0.0, 0.25, 0.5, 0.75][count]
        assert "".join(found.kept).encode() == whole[: [0, *ends][count]]
        assert bool(found.broken) == (length not in [0, *ends, *(e - 1 for e in ends)])


@pytest.mark.parametrize(
    "line",
    [b'{"step": 4, "lo', b"\0" * 50, b"\xff\xfe", b"[1]", b"4", b'{"loss": 1}', b""],
)
def test_a_broken_last_line_is_left_out(path, line):
    write_steps(path)
    whole = path.read_bytes()
    for end in (b"", b"\n"):
        path.write_bytes(whole + line + end)
        assert [one["step"] for one in metrics.read(path)] == [1, 2, 3]
        assert metrics.steps(path) == ([1, 2, 3], None)
        assert "".join(metrics.split(path, 3).kept).encode() == whole


@pytest.mark.parametrize("line", ['{"step": 4, "lo', "\0\0", "[1]", '{"loss": 1}', ""])
def test_a_broken_line_before_the_last_is_an_error(path, line):
    write_steps(path)
    with path.open("a") as file:
        file.write(f"{line}\n")
    write_steps(path, [5])
    with pytest.raises(MetricsError, match=rf"line 4 of {path} is broken"):
        metrics.read(path)
    assert metrics.steps(path) == ([1, 2, 3, 5], 4)
    rest = metrics.read(path, skip_broken=True)
    assert [one["step"] for one in rest] == [1, 2, 3, 5]
    found = metrics.split(path, 9)
    assert (found.steps, found.broken) == ([1, 2, 3, 5], [f"{line}\n"])


@pytest.mark.parametrize(
    ("last", "steps", "seconds"),
    [(None, [], 0.0), (0, [], 0.0), (2, [1, 2], 0.5), (9, [1, 2, 3], 0.75)],
)
def test_split(path, last, steps, seconds):
    write_steps(path)
    lines = path.read_text().splitlines(keepends=True)
    count = len(steps)
    found = metrics.split(path, last)
    assert found == (lines[:count], steps, lines[count:], [], seconds)


def test_split_knows_lines_without_time(path):
    path.write_text('{"step": 1, "time": 2.5}\n{"step": 2}\n')
    assert metrics.split(path, 1).seconds == 2.5
    path.write_text('{"step": 1}\n')
    assert metrics.split(path, 1).seconds == 0.0


# -- findings X6 and X10 --------------------------------------------------------------


def test_x10_texts_that_look_like_numbers_come_back_as_texts(path):
    texts = ["NaN", "Infinity", "-Infinity", "\\NaN", "\\\\-Infinity", "nan", "\\"]
    values = {"texts": texts, "numbers": [math.inf, -math.inf], "nan": math.nan}
    files.append(path, metrics.line(1, 0.0, values))
    (line,) = metrics.read(path)
    assert line["texts"] == texts
    assert line["numbers"] == [math.inf, -math.inf]
    assert math.isnan(line["nan"])


@pytest.mark.parametrize("value", [np.longdouble(1), np.ones(2, np.longdouble)])
def test_x10_long_doubles_have_no_json(value):
    with pytest.raises(MetricsError, match=r"x(\[0\])? is a longdouble, which JSON"):
        metrics.plain(value, "x")


@pytest.mark.parametrize("step", [-1, 2.7, 2.0, "3", None, np.float32(1), jnp.ones(())])
def test_x10_a_step_is_a_whole_number(step):
    with pytest.raises(MetricsError, match="a step is a whole number, 0 or more; got "):
        metrics.line(step, 0.0, {})


@pytest.mark.parametrize("step", [0, np.int64(3), jnp.asarray(3), 2**40])
def test_numbers_of_steps(step):
    assert json.loads(metrics.line(step, 0.0, {}))["step"] == int(step)


def test_x6_a_line_after_half_a_line_is_whole(path):
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    files.append(path, '{"step": 3}\n')
    assert path.read_text() == '{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n'


def test_x6_a_line_that_the_disk_refuses_leaves_nothing(path):
    code = """
import resource, runpy, signal, sys
append = runpy.run_path(sys.argv[1])["append"]
append(sys.argv[2], "1" * 9 + "\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (15, resource.RLIM_INFINITY))
try:
    append(sys.argv[2], "2" * 9 + "\\n")
except OSError as error:
    print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
append(sys.argv[2], "3" * 9 + "\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, files.__file__, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "OSError\n"
    assert path.read_text() == "111111111\n333333333\n"


def test_no_link_is_followed(path, tmp_path):
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        files.append(path, "1\n")
    assert not (tmp_path / "other").exists()
