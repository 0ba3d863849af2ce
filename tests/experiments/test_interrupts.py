"""Ctrl-C, and what schedulers send, at the wrong moment."""

import signal
import threading

import jax.numpy as jnp
import pytest

from bilevel.experiments import digests, interrupts, metrics, run_folder, step_folder


@pytest.fixture(autouse=True)
def python_handler():
    """Background jobs of a shell are started with Ctrl-C ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, previous) is signal.default_int_handler


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_waits_for_the_end():
    done = []

    @interrupts.held_back()
    def inner():
        press()
        done.append("inner")

    @interrupts.held_back()
    def outer():
        inner()
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["inner", "outer"]


def test_the_second_does_not_wait():
    done = []

    @interrupts.held_back()
    def work():
        press()
        done.append(1)
        press()
        done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]


def test_an_error_inside_is_not_lost():
    @interrupts.held_back()
    def work():
        press()
        raise ValueError("disk full")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_whoever_handles_ctrl_c_still_does():
    seen = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interrupts.held_back():
            press()
            assert not seen
        assert seen == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts.held_back():
            press()
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_hear_of_no_signal():
    told = []

    def work():
        with interrupts.held_back(), interrupts.noticed() as was_interrupted:
            told.append(was_interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [0]


def test_it_is_noticed_though_somebody_handled_it():
    with interrupts.noticed() as first_signal:
        assert first_signal() == 0
        with pytest.raises(KeyboardInterrupt):
            press()
        assert first_signal() == signal.SIGINT


@pytest.fixture(params=interrupts.SIGNALS[1:], ids=lambda one: one.name)
def other(request):
    """A signal of a scheduler or a terminal, with its default handler."""
    previous = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, previous)


def test_the_others_are_as_ctrl_c(other):
    with interrupts.noticed() as first_signal:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(other)
        signal.raise_signal(other)  # some senders send several
        signal.raise_signal(signal.SIGTERM)
        assert first_signal() == other
        with pytest.raises(KeyboardInterrupt):
            press()  # the user still can
        assert first_signal() == other
    assert signal.getsignal(other) is signal.SIG_DFL


def test_the_others_go_to_whoever_waits_for_ctrl_c(other):
    """`bilevel.run` ends after a chunk."""
    seen = []
    with interrupts.noticed():
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        signal.raise_signal(other)
        assert seen == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_others_work_where_ctrl_c_is_ignored(other):
    """In the background of a shell."""
    done = []

    @interrupts.held_back()
    def work():
        signal.raise_signal(other)
        signal.raise_signal(other)
        done.append(1)

    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.noticed(), pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert done == [1]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_what_the_program_decided_stays(other, handler):
    """`nohup` ignores SIGHUP, and submitit has a handler of SIGUSR1."""
    signal.signal(other, handler)
    with interrupts.noticed() as first_signal:
        signal.raise_signal(other)
        assert signal.getsignal(other) is handler
        assert first_signal() == 0


def test_a_save_is_done_before_the_interrupt(tmp_path, monkeypatch):
    """The state is sealed, its digest is written, and only then main hears of it."""

    def started(*arguments):
        press()
        return records(*arguments)

    records = digests.leaf_records
    state = {"x": jnp.ones(3)}
    with run_folder.open_run(tmp_path, save_every=1) as run:
        run.restore(state)
        monkeypatch.setattr(digests, "leaf_records", started)
        with pytest.raises(KeyboardInterrupt):
            run.save(1, state)
        monkeypatch.undo()
        assert metrics.read(tmp_path / "digests.jsonl")[-1]["step"] == 1
    assert step_folder.latest_step(tmp_path / "ckpt") == 1
