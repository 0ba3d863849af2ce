"""Typed configurations: checks, canonical JSON, differences, replacement."""

import dataclasses
import json
from typing import Literal

import jax
import numpy as np
import pytest

from bilevel.experiments import config

DATACLASS = dataclasses.dataclass(frozen=True, kw_only=True, slots=True)


@DATACLASS
class Inner:
    learning_rate: float = config.field(0.1, help="step size", minimum=0.0, maximum=1.0)
    steps: int = config.field(10, help="steps", minimum=1)
    solver: Literal["cg", "neumann"] = config.field("cg", help="linear solver")


@DATACLASS
class Config:
    inner: Inner = Inner()
    name: str = "run"
    clip: float | None = None
    widths: tuple[int, ...] = (8, 4)
    warm: bool = True


def test_round_trip_by_json():
    given = config.replace(
        Config(), {"inner.steps": 3, "widths": (1, 2, 3), "clip": 0.5, "warm": False}
    )
    again = config.from_dict(Config, json.loads(config.to_json(given)))
    assert again == given
    assert type(again.inner) is Inner
    assert again.widths == (1, 2, 3)
    assert config.from_dict(Config, config.to_dict(Config())) == Config()


def test_json_is_canonical():
    assert config.to_json(Config()) == (
        '{"clip":null,"inner":{"learning_rate":0.1,"solver":"cg","steps":10},'
        '"name":"run","warm":true,"widths":[8,4]}'
    )


def test_values_are_normalised_once():
    # An int for a float, a list for a tuple, NumPy scalars: one value, one digest.
    loose = Config(
        inner=Inner(learning_rate=1, steps=np.int32(3)),
        widths=[8, 4],  # pyright: ignore[reportArgumentType]
        clip=np.float64(2.0),
    )
    strict = Config(inner=Inner(learning_rate=1.0, steps=3), clip=2.0)
    checked = config.checked(loose)
    assert checked == strict
    assert type(checked.inner.learning_rate) is float
    assert type(checked.inner.steps) is int
    assert type(checked.clip) is float
    assert config.digest(loose) == config.digest(strict)
    assert config.digest(strict) != config.digest(Config())


def test_equal_configs_share_one_trace():
    traces = []

    def scaled(x, cfg):
        traces.append(cfg)
        return x * cfg.inner.learning_rate

    jitted = jax.jit(scaled, static_argnums=1)
    data = config.to_dict(Config())
    jitted(1.0, Config())
    jitted(1.0, config.from_dict(Config, data))
    jitted(1.0, config.replace(Config(inner=Inner(steps=3)), {"inner.steps": 10}))
    assert len(traces) == 1
    jitted(1.0, config.replace(Config(), {"inner.steps": 11}))
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("inner.learning_rate", "abc", "expected float, got 'abc' (str)"),
        ("inner.learning_rate", None, "expected float, got None"),
        ("inner.learning_rate", True, "expected float, got True (bool)"),
        ("inner.learning_rate", float("nan"), "expected a finite float, got nan"),
        ("inner.learning_rate", -0.1, "must be at least 0.0, got -0.1"),
        ("inner.learning_rate", 1.5, "must be at most 1.0, got 1.5"),
        ("inner.steps", 2.0, "expected int, got 2.0 (float)"),
        ("inner.steps", 0, "must be at least 1, got 0"),
        ("inner.solver", "gc", "expected one of 'cg', 'neumann', got 'gc' (str)"),
        ("name", 3, "expected str, got 3 (int)"),
        ("clip", "0.1", "expected float, got '0.1' (str)"),
        ("widths", 8, "expected tuple of int, got 8 (int)"),
        ("widths", (8, 0.5), "expected int, got 0.5 (float)"),
        ("warm", 1, "expected bool, got 1 (int)"),
    ],
)
def test_wrong_value_names_field_and_reason(path, value, message):
    with pytest.raises(config.ConfigError) as caught:
        config.replace(Config(), {path: value})
    assert str(caught.value) == f"{path}: {message}"


def test_from_dict_lists_every_unknown_and_missing_field():
    data = config.to_dict(Config())
    data["inner"]["rate"] = data["inner"].pop("learning_rate")
    del data["name"]
    data["old"] = 3
    with pytest.raises(config.ConfigError) as caught:
        config.from_dict(Config, data)
    assert str(caught.value) == (
        "the fields are not those of Config; unknown: inner.rate, old;"
        " missing: inner.learning_rate, name"
    )


def test_replace_refuses_unknown_paths():
    with pytest.raises(config.ConfigError, match=r"unknown fields: inner\.rate; there"):
        config.replace(Config(), {"inner.rate": 0.1})


def test_difference():
    assert config.difference(Config(), Config()) == []
    other = config.replace(Config(), {"inner.learning_rate": 0.05, "widths": ()})
    assert config.difference(config.to_dict(Config()), other) == [
        "inner.learning_rate: 0.1 -> 0.05",
        "widths: [8, 4] -> []",
    ]
    older = config.to_dict(Config())
    del older["clip"]
    assert config.difference(older, Config()) == ["clip: (absent) -> null"]


def test_group_of_another_class():
    wrong = Config(inner=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(config.ConfigError, match=r"^inner: expected Inner, got 3"):
        config.checked(wrong)


def test_only_frozen_dataclasses_of_supported_types():
    @dataclasses.dataclass
    class Changeable:
        steps: int = 3

    @DATACLASS
    class Unsupported:
        rates: dict[str, float] | None = None

    with pytest.raises(config.ConfigError, match="Changeable can be changed after"):
        config.checked(Changeable())
    with pytest.raises(config.ConfigError, match=r"Unsupported\.rates has type dict"):
        config.checked(Unsupported())
    with pytest.raises(config.ConfigError, match=r"instance of a dataclass, got \{"):
        config.checked({"steps": 3})
    with pytest.raises(config.ConfigError, match="instance of a dataclass"):
        config.checked(Config)


def test_what_the_class_itself_refuses():
    @DATACLASS
    class Pair:
        low: int = 0
        high: int = 1

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(config.ConfigError, match=r"^Pair: low is above high$"):
        config.replace(Pair(), {"low": 2})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    name: str | None = None
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "none"}, "'none' is no text here"),
        ({"name": "None"}, "'none' is no text here"),
        ({"names": ("a,b", "c")}, "has no commas and is not empty"),
        ({"names": ("",)}, "has no commas and is not empty"),
    ],
)
def test_texts_that_a_flag_cannot_say_are_refused(values, message):
    with pytest.raises(config.ConfigError, match=message):
        config.checked(Texts(**values))


@pytest.mark.parametrize(
    "annotation",
    [
        tuple[tuple[int, ...], ...],
        tuple[tuple[int, ...], ...] | None,
        tuple[tuple[int, ...] | None, ...],
    ],
)
def test_x10_a_tuple_in_a_tuple_is_refused(annotation):
    """`reproduce` could not pass it on as a flag: `1,2,3` is ((1, 2), (3,)), too."""
    field = ("t", annotation, dataclasses.field(default=((1, 2), (3,))))
    cls = dataclasses.make_dataclass("C", [field], frozen=True)
    with pytest.raises(
        config.ConfigError, match=r"C\.t has type .*; supported are bool,"
    ):
        config.checked(cls())


@pytest.mark.parametrize(
    "annotation", [tuple[int, ...] | None, tuple[int | None, ...], tuple[str, ...]]
)
def test_other_tuples_are_supported(annotation):
    field = ("t", annotation, dataclasses.field(default=()))
    cls = dataclasses.make_dataclass("C", [field], frozen=True)
    assert config.checked(cls()).t == ()
