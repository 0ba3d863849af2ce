"""Progress: lines, a bar, and neither too many nor too few of them."""

import io
import os
import sys

import pytest

from bilevel.experiments.progress import in_notebook, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    pytest.importorskip("rich")
    for name, value in {"TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_lines_at_most_every_interval():
    stream, clock = io.StringIO(), Clock()
    with progress("soba", stream=stream, interval=5.0, clock=clock) as callback:
        for step in range(0, 101, 10):
            callback(step, 100, {"loss": 1.0 / (1 + step)})
            clock.now += 2.0
    assert stream.getvalue().splitlines() == [
        "soba 0/100  loss 1",
        "soba 30/100  loss 0.03226  5 steps/s  0:00:14 left",
        "soba 60/100  loss 0.01639  5 steps/s  0:00:08 left",
        "soba 90/100  loss 0.01099  5 steps/s  0:00:02 left",
        "soba 100/100  loss 0.009901  5 steps/s  0:00:00 left",
    ]


def test_speed_leaves_out_what_was_before_a_resume():
    stream, clock = io.StringIO(), Clock()
    with progress("run", stream=stream, interval=0.0, clock=clock) as callback:
        callback(900, 1000, {})
        clock.now += 10.0
        callback(950, 1000, {})
    last = stream.getvalue().splitlines()[-1]
    assert last == "run 950/1000  5 steps/s  0:00:10 left"


def test_single_call():
    stream = io.StringIO()
    with progress("run", stream=stream) as callback:
        callback(8, 8, {"loss": float("nan")})
    assert stream.getvalue() == "run 8/8  loss nan\n"


def test_default_is_standard_output(capsys):
    with progress("run") as callback:
        callback(1, 2, {"loss": 0.5})
    assert capsys.readouterr().out == "run 1/2  loss 0.5\n"


def test_bar_in_a_terminal(terminal):
    with progress("soba [inner]", stream=terminal) as callback:
        callback(50, 100, {"loss": 0.25, "gradient": 3.0})
        callback(100, 100, {"loss": 0.125, "gradient": 2.0})
    text = terminal.getvalue()
    for part in ("soba [inner]", "100/100", "loss 0.125", "gradient 2"):
        assert part in text


def test_bar_is_closed_by_an_error(terminal):
    def interrupted():
        with progress("soba", stream=terminal) as callback:
            callback(1, 2, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_lines_in_a_terminal_without_rich(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    stream = Terminal()
    with progress("run", stream=stream) as callback:
        callback(1, 1, {})
    assert stream.getvalue() == "run 1/1\n"
    assert "bilevel.experiments.progress" in sys.modules


NOTEBOOK = """
from bilevel.experiments import progress
now = 0.0
def clock():
    return now
with progress("soba", clock=clock) as show:
    for step in range(10, 101, 10):
        show(step, 100, {"loss": 1.0 / step, "bad": float("nan")})
        now += 0.4
"""


@pytest.mark.thorough
def test_live_plot_in_a_notebook():
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    updates = []

    class Client(nbclient.NotebookClient):
        def process_message(self, msg, cell, cell_index):
            updates.append(msg["msg_type"])
            return super().process_message(msg, cell, cell_index)

    inline = "module://matplotlib_inline.backend_inline"
    client = Client(notebook, timeout=120, kernel_name="python3")
    client.execute(env={**os.environ, "MPLBACKEND": inline})
    (output,) = notebook.cells[0].outputs  # one plot, drawn anew in place
    assert output["output_type"] == "display_data"
    assert "image/png" in output["data"]
    assert updates.count("display_data") == 1
    # Not at every step: after a second each, and at the end.
    assert updates.count("update_display_data") == 3


def test_no_notebook_here():
    assert not in_notebook()
