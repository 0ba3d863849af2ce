"""Configuration files and the flags that are made of them."""

import pytest
from absl import flags

from bilevel.experiments import command_line, config

SOURCE = """
from __future__ import annotations

import dataclasses
from typing import Literal

from bilevel.experiments import config


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    learning_rate: float = config.field(0.1, help="step size", minimum=0.0)
    steps: int = config.field(10, help="number of steps", minimum=1, maximum=99)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    inner: Inner = Inner()
    solver: Literal["cg", "neumann"] = config.field("cg", help="adjoint solver")
    degree: Literal[1, 2] = config.field(1, help="degree")
    clip: float | None = config.field(None, help="largest norm")
    limit: int | None = config.field(5, help="limit")
    widths: tuple[int, ...] = config.field((8, 4), help="layers")
    names: tuple[str, ...] = config.field((), help="names")
    label: str = config.field("a b", help="label")
    warm: bool = config.field(True, help="warm start")


def get_config() -> Config:
    return Config()
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "ridge.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def read(config_file):
    """Reads a configuration from flags."""

    def from_arguments(*arguments):
        cfg = command_line.load_config(config_file).config
        values = flags.FlagValues()
        command_line.define_launch_flags(values, "x.py")
        command_line.define_config_flags(cfg, values, "x.py")
        command_line.parse(["x.py", f"--config={config_file}", *arguments], values)
        return command_line.read_config(cfg, values), values

    return from_arguments


def test_no_flags_no_change(read, config_file):
    assert config.to_json(read()[0]) == config.to_json(
        command_line.load_config(config_file).config
    )


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["--cfg.inner.learning_rate=0.05"], "inner.learning_rate", 0.05),
        (["--cfg.inner.learning_rate", "1"], "inner.learning_rate", 1.0),
        (["--cfg.inner.steps=3"], "inner.steps", 3),
        (["--cfg.solver=neumann"], "solver", "neumann"),
        (["--cfg.degree=2"], "degree", 2),
        (["--cfg.clip=0.5"], "clip", 0.5),
        (["--cfg.clip=0.5", "--cfg.clip=none"], "clip", None),
        (["--cfg.limit=None"], "limit", None),
        (["--cfg.widths=1, 2,3"], "widths", (1, 2, 3)),
        (["--cfg.widths="], "widths", ()),
        (["--cfg.names=a,b"], "names", ("a", "b")),
        (["--cfg.label=none"], "label", "none"),
        (["--nocfg.warm"], "warm", False),
        (["--cfg.warm=false"], "warm", False),
    ],
)
def test_flags_set_values(read, arguments, path, value):
    found = config.flat(read(*arguments)[0])[path]
    assert found == value
    assert type(found) is type(value)


def test_round_trip_by_flags(read):
    first, values = read(
        "--cfg.inner.learning_rate=0.3", "--cfg.clip=0.5", "--cfg.names=x,y"
    )
    names = [name for name in values if name.startswith("cfg.")]
    assert len(names) == 10
    written = [values[name].serialize() for name in names]
    second, _ = read(*[text for text in written if text])
    assert config.to_json(second) == config.to_json(first)


def test_flags_are_typed_and_described(read):
    _, values = read("--cfg.inner.steps=3")
    assert values["cfg.inner.steps"].value == 3
    assert values["cfg.inner.learning_rate"].value == 0.1
    text = values.get_help()
    for line in (
        "--cfg.inner.learning_rate: step size",
        "(float, at least 0.0)",
        "(int, at least 1, at most 99)",
        "(one of 'cg', 'neumann')",
        "(tuple of int, comma-separated)",
        "(float or none)",
        "--[no]cfg.warm: warm start",
        "(default: '8,4')",
        "(default: '0.1')",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--cfg.inner.learning_rate=abc",
            "flag --cfg.inner.learning_rate=abc: expected float, got 'abc' (str)",
        ),
        (
            "--cfg.inner.learning_rate=none",
            "flag --cfg.inner.learning_rate=none: expected float, got 'none' (str)",
        ),
        (
            "--cfg.inner.learning_rate=-1",
            "flag --cfg.inner.learning_rate=-1: must be at least 0.0, got -1.0",
        ),
        (
            "--cfg.inner.steps=100",
            "flag --cfg.inner.steps=100: must be at most 99, got 100",
        ),
        (
            "--cfg.inner.steps=1.5",
            "flag --cfg.inner.steps=1.5: expected int, got '1.5' (str)",
        ),
        (
            "--cfg.solver=gc",
            "flag --cfg.solver=gc: expected one of 'cg', 'neumann', got 'gc' (str)",
        ),
        (
            "--cfg.widths=1,x",
            "flag --cfg.widths=1,x: expected int, got 'x' (str)",
        ),
        (
            "--cfg.inner.learning_rte=0.1",
            "unknown flag --cfg.inner.learning_rte."
            " Did you mean --cfg.inner.learning_rate?",
        ),
        (
            "--cfg.learning_rate=0.1",
            "unknown flag --cfg.learning_rate. Did you mean --cfg.inner.learning_rate?",
        ),
        (
            "--cfg.learningrate=0.1",
            "unknown flag --cfg.learningrate. Did you mean --cfg.inner.learning_rate?",
        ),
        (
            "--cfg.inner=3",
            "unknown flag --cfg.inner. It is a group:"
            " --cfg.inner.learning_rate, --cfg.inner.steps",
        ),
        ("--wrokdir=a", "unknown flag --wrokdir. Did you mean --workdir?"),
        ("--qqqqqqqq=a", "unknown flag --qqqqqqqq."),
        (
            "cfg.inner.steps=3",
            "unexpected argument 'cfg.inner.steps=3'. Did you mean --cfg.inner.steps?",
        ),
        ("--save_every=0", "flag --save_every=0: 0 is not a positive integer"),
    ],
)
def test_errors_are_one_line(read, argument, message):
    with pytest.raises(config.ConfigError) as caught:
        read(argument)
    assert str(caught.value) == message


def test_config_argument():
    find = command_line.config_argument
    assert find(["x", "--config=a.py"]) == "a.py"
    assert find(["x", "--config", "a.py", "--workdir=b"]) == "a.py"
    assert find(["x", "--config=a.py", "--config=b.py"]) == "b.py"
    assert find(["x", "--config_file=a.py"]) is None
    assert find(["x", "--config"]) is None
    assert find(["x", "--", "--config=a.py"]) is None
    assert find(["--config=a.py"]) is None


def test_unknown_file_lists_what_there_is(config_file):
    (config_file.parent / "mnist.py").write_text("")
    (config_file.parent / "_shared.py").write_text("")
    wanted = config_file.with_name("rigde.py")
    with pytest.raises(config.ConfigError) as caught:
        command_line.load_config(wanted)
    mnist = config_file.with_name("mnist.py")
    assert str(caught.value) == (
        f"there is no configuration file {wanted}. Did you mean {config_file}?"
        f" There are: {mnist}, {config_file}"
    )
    with pytest.raises(config.ConfigError, match="There are none beside it"):
        command_line.load_config(config_file.parent / "elsewhere" / "a.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "{path} defines no function get_config()"),
        ("x = 1\ny = )\n", "{path}, line 2: unmatched ')'\n  y = )"),
        (
            "def get_config(): return {'a': 1}",
            "get_config() of {path}: expected an instance of a dataclass,"
            " got {{'a': 1}} (dict)",
        ),
        (
            "def get_config(): return None",
            "get_config() of {path}: expected an instance of a dataclass, got None",
        ),
        (
            SOURCE + "\n\ndef get_config(): return Config(inner=Inner(steps=0))",
            "get_config() of {path}: inner.steps: must be at least 1, got 0",
        ),
    ],
)
def test_wrong_files(tmp_path, source, message):
    path = tmp_path / "wrong.py"
    path.write_text(source)
    with pytest.raises(config.ConfigError) as caught:
        command_line.load_config(path)
    assert str(caught.value) == message.format(path=path)


def test_errors_of_the_file_itself_pass(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import math\n\nmath.sqrt(-1)")
    with pytest.raises(ValueError, match=r"math domain|nonnegative") as caught:
        command_line.load_config(path)
    assert caught.traceback[-1].path == path
    assert caught.traceback[-1].lineno == 2


def test_loaded_keeps_the_text(config_file):
    loaded = command_line.load_config(str(config_file))
    assert loaded.source == SOURCE
    assert loaded.path == config_file


def test_data_dir_from_the_environment(monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", "elsewhere")
    values = flags.FlagValues()
    command_line.define_launch_flags(values, "x.py")
    command_line.parse(["x.py"], values)
    assert values["data_dir"].value == "elsewhere"
