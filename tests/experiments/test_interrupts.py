"""Ctrl-C at the wrong moment."""

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
    assert told == [False]


def test_it_is_noticed_though_somebody_handled_it():
    with interrupts.noticed() as was_interrupted:
        assert not was_interrupted()
        with pytest.raises(KeyboardInterrupt):
            press()
        assert was_interrupted()


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
