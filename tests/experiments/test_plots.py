"""Curves: what is drawn, and what is not."""

import math

import numpy as np

from bilevel.experiments import plots

ROWS = [
    {"step": s, "time": 0.1 * s, "loss": 10.0 ** (-s), "name": "cg", "ok": True}
    for s in range(5)
]


def test_metrics_are_the_numbers():
    rows = [*ROWS, {"step": 5, "loss": math.nan, "late": 1}]
    assert plots.metric_names(rows) == ["loss", "late"]


def test_one_panel_a_metric_one_line_a_run():
    other = [{"step": 2, "loss": math.nan}, {"step": 3, "loss": 4.0, "late": 1.0}]
    figure = plots.make({"a": ROWS, "b": other}, ["loss", "late"])
    first, second = figure.axes
    assert [line.get_label() for line in first.get_lines()] == ["a", "b"]
    np.testing.assert_array_equal(first.get_lines()[1].get_xydata(), [[3.0, 4.0]])
    assert first.get_yscale() == "log"
    assert second.get_yscale() == "linear"
    assert len(second.get_lines()) == 1


def test_nothing_to_draw(tmp_path):
    assert not plots.draw({"a": [{"step": 1, "name": "cg"}]}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    assert plots.draw({"a": ROWS}, tmp_path / "deep" / "a.svg", ["loss"])
    assert (tmp_path / "deep" / "a.svg").read_text().startswith("<?xml")


def test_lines_by_text():
    rows = [{"step": s, "method": m, "loss": s} for m in "ab" for s in range(3)]
    found = plots.by_text([*rows, {"step": 4, "loss": 1.0}], "run")
    assert {name: len(lines) for name, lines in found.items()} == {
        "a": 3,
        "b": 3,
        "run": 1,
    }
    many = [{"step": s, "time of day": str(s)} for s in range(11)]
    assert plots.by_text(many, "run") == {"run": many}


def test_a_method_that_starts_anew_is_no_way_back():
    rows = [{"step": s, "loss": 1.0 + s} for s in (0, 1, 2, 0, 1)]
    (panel,) = plots.make({"a": rows}, ["loss"]).axes
    (line,) = panel.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, math.nan, 0, 1])


def test_a_run_has_one_colour_and_a_place_in_the_legend():
    both = {
        "a": [{"step": 1, "loss": 1.0}],
        "b": [{"step": 1, "loss": 2.0, "accuracy": 0.5}],
    }
    first, second = plots.make(both, ["accuracy", "loss"]).axes
    (alone,) = first.get_lines()
    assert alone.get_color() == second.get_lines()[1].get_color() == "C1"
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["a", "b"]


def test_layers_of_a_single_run_share_a_panel():
    rows = [{"step": s, "angle_1": s, "angle_2": 2 * s, "loss_1": 1.0} for s in (1, 2)]
    names = plots.metric_names(rows)
    angles, loss = plots.make({"a": rows}, names).axes
    assert (angles.get_title(), loss.get_title()) == ("angle", "loss_1")
    first, second = angles.get_lines()
    assert first.get_color() != second.get_color()
    np.testing.assert_array_equal(second.get_ydata(), [2, 4])
    assert [text.get_text() for text in angles.get_legend().get_texts()] == ["1", "2"]
    assert loss.get_legend() is None
    assert len(plots.make({"a": rows, "b": rows}, names).axes) == 3


def test_x10_names_with_dollars_are_no_formulas(tmp_path):
    """`$` opens a formula of matplotlib, and `cost$_^$` is a wrong one."""
    rows = [
        {"step": step, "cost$_^$": 1.0, "a$_1": 2.0, "a$_2": 3.0} for step in (1, 2)
    ]
    for runs in ({"a$_^$": rows}, {"a$_^$": rows, "b$": rows}):
        assert plots.draw(runs, tmp_path / "a.svg")
    figure = plots.make({"a$_^$": rows, "b$": rows}, ["cost$_^$"])
    figure.canvas.draw()
    legend = figure.axes[0].get_legend()
    assert len(legend.get_texts()) == 2
