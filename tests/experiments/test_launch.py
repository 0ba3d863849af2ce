"""The start of a program: exit codes, messages, and the folder that is left."""

import contextlib
import functools
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from absl import flags

import bilevel.experiments
from bilevel import Batches, Problem, solvers
from bilevel.experiments import (
    environment,
    metrics,
    run_folder,
    starts,
    step_folder,
    train,
)
from bilevel.experiments.launch import launch

REPOSITORY = Path(bilevel.experiments.__file__).parents[2]
NO_RECORD = """\
warning: no requirements.lock: versions are recorded, not checked
warning: no git commit: of the code, the program's own file is recorded
"""

CONFIG = '''
"""A random walk; command: python walk.py --config=walk_config.py."""

import dataclasses

from bilevel.experiments import config


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    rate: float = config.field(0.1, help="step size", minimum=0.0)
    steps: int = config.field(40, help="number of steps", minimum=1)


def get_config() -> Config:
    return Config()
'''

# Slow enough to be killed: the test waits for a checkpoint, not for a time.
PROGRAM = '''
"""A random walk with momentum, saved every few steps."""

import os
import time

import jax
import optax

from bilevel.experiments import digests, launch


def main(config, run):
    optimizer = optax.adam(config.rate)
    position = jax.numpy.ones(300)
    state = (position, optimizer.init(position), jax.random.key(3))
    state, first = run.restore(state) or (state, 0)

    @jax.jit
    def update(state, step):
        position, opt_state, key = state
        noise = jax.random.normal(jax.random.fold_in(key, step), position.shape)
        updates, opt_state = optimizer.update(position + noise, opt_state)
        return optax.apply_updates(position, updates), opt_state, key

    for step in range(first + 1, config.steps + 1):
        state = update(state, step)
        run.log(step, mean=state[0].mean())
        run.save(step, state)
        time.sleep(float(os.environ.get("SECONDS_PER_STEP", "0")))
    run.save(config.steps, state, force=True)
    run.finish({"digest": digests.digest(state), "first": first})
    print("done")


if __name__ == "__main__":
    launch(main)
'''


def without_repository(said):
    """Drops what depends on the repository that bilevel and these tests are in."""
    text = re.sub(r"warning: modules from outside of .*\n(  .*\n)+", "", said)
    return re.sub(r"\d+ new files are .*\n", "", text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    Path("configs").mkdir()
    Path("configs/walk.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def start(folder, capsys):
    """Launches in this process; returns the exit code and what was said."""

    def launched(main, *arguments, config="configs/walk.py"):
        argv = ["walk.py", *([f"--config={config}"] if config else []), *arguments]
        with pytest.raises(SystemExit) as caught:
            launch(main, argv=argv, flag_values=flags.FlagValues())
        return caught.value.code, capsys.readouterr().err

    return launched


def finishing(config, run):
    run.finish({"rate": config.rate})


def test_config_and_run_reach_main(start, folder):
    seen = []

    def main(config, run):
        seen.append((config.rate, config.steps, run.data_dir))
        run.log(1, loss=0.5)
        run.finish({"loss": 0.5})

    Path("walk.py").write_text("# the program")
    arguments = ["--cfg.rate=0.05", "--workdir=a", "--data_dir=data"]
    code, said = start(main, *arguments)
    assert code == 0
    head, last = f"new run in a\n{NO_RECORD}", said.splitlines()[-1]
    assert without_repository(said) == f"{head}{last}\n"
    assert re.fullmatch(r"finished: loss 0\.5, time [\d.]+; all of it in a", last)
    assert (folder / "a" / "figures" / "metrics.png").exists()
    assert seen == [(0.05, 40, Path("data"))]
    record = json.loads((folder / "a" / "config.json").read_text())
    assert record["config"] == {"rate": 0.05, "steps": 40}
    (only,) = starts.read_all(folder / "a")
    assert only.command["argv"] == ["walk.py", "--config=configs/walk.py", *arguments]
    assert (folder / "a" / "config.py.txt").read_text() == CONFIG
    assert (folder / "a" / "summary.json").exists()


@pytest.mark.thorough
def test_without_workdir_every_start_is_a_new_folder(start, folder):
    for _ in range(3):
        assert start(finishing)[0] == 0
    made = sorted((folder / "runs").iterdir())
    assert len(made) == 3
    assert all(one.name.startswith("walk-20") for one in made)


def test_finished_run_is_left_alone(start, folder):
    start(finishing, "--workdir=a")
    before = (folder / "a" / "summary.json").stat().st_mtime_ns

    def main(config, run):
        raise AssertionError

    assert start(main, "--workdir=a") == (
        0,
        "a is finished; for another run give another --workdir\n",
    )
    assert (folder / "a" / "summary.json").stat().st_mtime_ns == before


def test_other_config_is_refused(start):
    start(finishing, "--workdir=a")
    code, said = start(finishing, "--workdir=a", "--cfg.rate=0.05")
    assert code == 1
    assert said == (
        "error: a holds a run with another configuration (field: stored -> given):"
        "\n  rate: 0.1 -> 0.05"
        "\ngive the stored values to resume it, or another --workdir\n"
    )


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        (["--cfg.rate=x"], "configs/walk.py", "flag --cfg.rate=x: expected float, got"),
        (["--cfg.rate=-1"], "configs/walk.py", "flag --cfg.rate=-1: must be at least"),
        (["--cfg.rte=1"], "configs/walk.py", "unknown flag --cfg.rte. Did you mean -"),
        (["rate=1"], "configs/walk.py", "unexpected argument 'rate=1'. Did you mean"),
        (
            [],
            "configs/wlak.py",
            "there is no configuration file configs/wlak.py."
            " Did you mean configs/walk.py? There are: configs/walk.py\n",
        ),
        ([], None, "pass --config=<file>. There are: configs/walk.py\n"),
        (["--workdir=configs"], "configs/walk.py", "configs holds files but no run"),
    ],
)
def test_mistakes_are_one_line_and_exit_1(start, folder, arguments, config, message):
    code, said = start(finishing, *arguments, config=config)
    assert code == 1
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    assert sorted(one.name for one in folder.iterdir()) == ["configs"]


def test_errors_of_main_pass(folder):
    def main(config, run):
        raise ZeroDivisionError("of the program")

    with pytest.raises(ZeroDivisionError, match="of the program"):
        launch(
            main,
            argv=["walk.py", "--config=configs/walk.py", "--workdir=a"],
            flag_values=flags.FlagValues(),
        )
    log = (folder / "a" / "log.txt").read_text()
    assert "Traceback" in log
    assert "ZeroDivisionError: of the program" in log


def test_mistakes_that_main_meets(start, folder):
    def main(config, run):
        run.log(1, data=object())

    code, said = start(main, "--workdir=a")
    assert code == 1
    assert said.endswith("error: metrics.data is a object, which JSON cannot hold\n")
    assert said.splitlines()[-1] in (folder / "a" / "log.txt").read_text()


def test_orbax_is_heard_in_the_log_only(start, folder):
    def main(config, run):
        record = logging.makeLogRecord(
            {
                "msg": "a thread failed",
                "pathname": "/x/orbax/checkpoint/future.py",
                "levelno": logging.ERROR,
            }
        )
        logging.getLogger().handle(record)
        run.finish({})

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        assert start(main, "--workdir=a")[0] == 0
        logging.getLogger().error("afterwards")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "a thread failed" in (folder / "a" / "log.txt").read_text()
    assert stream.getvalue() == "afterwards\n"


def test_warnings_and_log_messages_are_kept(start, folder, monkeypatch):
    shown = []

    def show(message, *others):
        shown.append(str(message))

    def main(config, run):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("penalty is large", UserWarning, stacklevel=1)
        logging.getLogger("somebody").warning("disk is slow")
        run.finish({})

    monkeypatch.setattr(warnings, "showwarning", show)
    assert start(main, "--workdir=a")[0] == 0
    assert shown == ["penalty is large"]
    log = (folder / "a" / "log.txt").read_text()
    assert "UserWarning: penalty is large" in log
    assert "WARNING somebody: disk is slow" in log
    assert warnings.showwarning is show


def test_drift_is_said_and_strict_env_refuses_it(start, folder):
    Path("requirements.lock").write_text("jax==0.1.2\nnot-installed==1\n")
    code, said = start(finishing, "--workdir=a")
    assert code == 0
    assert said.startswith(
        "new run in a\nwarning: packages differ from requirements.lock:\n"
        "  jax: locked 0.1.2, running "
    )
    assert "not-installed" not in said
    (only,) = starts.read_all(folder / "a")
    assert only.environment["lock"]["missing"] == ["not-installed"]
    code, said = start(finishing, "--workdir=b", "--strict_env")
    assert code == 1
    assert said.startswith("error: the environment has changed:\n  jax: locked 0.1.2,")
    assert not (folder / "b").exists()


def test_strict_env_without_a_lock(start):
    code, said = start(finishing, "--workdir=b", "--strict_env")
    assert code == 1
    assert said.startswith("error: --strict_env: there is no requirements.lock above")


@pytest.mark.thorough
def test_what_changed_since_the_last_start_is_said(start, monkeypatch):
    start(lambda config, run: None, "--workdir=a")
    monkeypatch.setenv("NPROC", "7")
    code, said = start(finishing, "--workdir=a")
    assert code == 0
    threads = environment.num_cores()
    assert f"since the run was started last:\n  threads: {threads} -> 7\n" in said


@pytest.mark.thorough
def test_stop_after_and_go_on(start, folder):
    def main(config, run):
        state, first = run.restore({"x": jnp.zeros(())}) or ({"x": jnp.zeros(())}, 0)
        for step in range(first + 1, config.steps + 1):
            state = {"x": state["x"] + 1}
            run.save(step, state, force=True)
            run.log(step, x=state["x"])
        run.finish({})

    code, said = start(main, "--workdir=a", "--stop_after=3")
    assert (code, said.splitlines()[-1]) == (0, "stopped after step 3")
    assert start(main, "--workdir=a")[0] == 0
    lines = metrics.read(folder / "a" / run_folder.METRICS)
    assert [one["x"] for one in lines] == list(range(1, 41))


def test_no_secret_is_written(start, folder, monkeypatch):
    secret = "hunter" + "2" * 9  # not in this file, which the recorded diff may hold
    monkeypatch.setenv("MY_TOKEN", secret)
    monkeypatch.setenv("JAX_SECRET_TOKEN", secret)

    def main(config, run):
        run.restore({"x": jnp.ones(2)})
        run.log(1, loss=0.5)

    argv = ["walk.py", "--config=configs/walk.py", "--workdir=a"]
    fresh = flags.FlagValues()
    flags.DEFINE_string("token", "", "", flag_values=fresh)
    with pytest.raises(SystemExit) as caught:
        launch(main, argv=[*argv, f"--token={secret}"], flag_values=fresh)
    assert caught.value.code == 0
    assert "'--token=(left out)'" in Path("a/log.txt").read_text()
    files = [one for one in (folder / "a").rglob("*") if one.is_file()]
    assert len(files) > 10
    assert not [one for one in files if secret.encode() in one.read_bytes()]


def test_a_secret_of_the_configuration_is_warned_of(folder, capsys):
    cfg = bilevel.experiments.config.of(api_key="abc", seed_key=3, hf_token="")
    argv = ["walk.py", "--workdir=a", "--cfg.api_key=hunter2"]
    with pytest.raises(SystemExit):
        launch(lambda cfg, run: None, cfg, argv=argv, flag_values=flags.FlagValues())
    said = capsys.readouterr().err
    assert "warning: config.json holds api_key, as every configuration: pass" in said
    (only,) = starts.read_all(folder / "a")
    assert only.command["argv"][-1] == "--cfg.api_key=(left out)"


@pytest.mark.thorough
def test_interrupt_after_going_back_does_not_go_back_again(start):
    def main(config, run):
        run.restore({"x": jnp.ones(2)})
        for step in (2, 3):
            run.save(step, {"x": jnp.ones(2)}, force=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    assert start(main, "--workdir=a")[0] == 130
    code, said = start(main, "--workdir=a", "--restore_step=2")
    assert code == 130
    assert "--restore_step" not in said


def test_main_that_does_not_finish(start):
    code, said = start(lambda config, run: None, "--workdir=a")
    assert code == 0
    assert "main returned before finish; the run in a is resumed by\n" in said


@pytest.mark.thorough
def test_interrupt_prints_the_command_that_resumes(start):
    def main(config, run):
        run.save(3, {"x": jnp.ones(2)}, force=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    code, said = start(main, "--cfg.rate=0.2")
    assert code == 130
    first, *_, second, command = said.splitlines()
    assert first.startswith("new run in runs/walk-20")
    name = first.removeprefix("new run in ")
    assert second == f"interrupted; the run in {name} is resumed by"
    _, *arguments = shlex.split(command)
    assert arguments[1:] == [
        "--config=configs/walk.py",
        "--cfg.rate=0.2",
        f"--workdir={name}",
    ]

    def resumed(config, run):
        assert run.restore({"x": jnp.zeros(2)})[1] == 3
        run.finish({})

    assert start(resumed, *arguments[2:])[0] == 0


CODES = {"SIGTERM": 143, "SIGUSR1": 128 + signal.SIGUSR1, "SIGHUP": 129}


@pytest.fixture
def default_signals():
    """What pytest or a shell does with them does not matter."""
    previous = {n: signal.signal(getattr(signal, n), signal.SIG_DFL) for n in CODES}
    yield
    for name, handler in previous.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize(("name", "expected"), CODES.items())
def test_signals_of_schedulers(start, default_signals, name, expected):
    """They end a run as Ctrl-C does, each with its own code."""

    def main(config, run):
        run.save(3, {"x": jnp.ones(2)}, force=True)
        signal.raise_signal(getattr(signal, name))
        raise AssertionError("not interrupted")

    code, said = start(main, "--workdir=a")
    assert code == expected
    assert said.endswith(
        f"ended by {name}; the run in a is resumed by\n"
        "  python walk.py --config=configs/walk.py --workdir=a\n"
    )
    assert step_folder.latest_step(Path("a/ckpt")) == 3
    assert f"ended by {name}" in Path("a/log.txt").read_text()


@pytest.mark.thorough
def test_signal_in_the_usual_main_loop(start, default_signals):
    """`experiments.train` ends after a chunk, saves, and the same command goes on."""
    problem = Problem(lambda w, x, b: (w - x) ** 2, lambda w, x, b: w**2)
    solver = solvers.two_loop(problem, outer_optimizer=optax.sgd(0.1))

    def main(config, run, send=True):
        def callback(state, infos):
            if int(state.step) == 20 and send:
                signal.raise_signal(signal.SIGTERM)

        state = solver.init(0.0, 1.0, jax.random.key(0))
        options = {"num_steps": config.steps, "callbacks": [callback]}
        train(run, solver, state, Batches(), **options)
        run.finish({})

    assert start(main, "--workdir=a")[0] == 143
    assert step_folder.latest_step(Path("a/ckpt")) == 20
    assert not Path("a/summary.json").exists()
    assert start(functools.partial(main, send=False), "--workdir=a")[0] == 0
    assert bilevel.load_run("a").column("value")[0] == list(range(1, 41))


def test_interrupt_that_somebody_else_handled(start, folder):
    """`bilevel.run` returns normally after Ctrl-C, and `main` goes on."""

    def main(config, run):
        previous = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        finally:
            signal.signal(signal.SIGINT, previous)
        run.save(3, {"x": jnp.ones(2)}, force=True)
        run.finish({"cut": "short"})

    code, said = start(main, "--workdir=a")
    assert code == 130
    assert said.endswith(
        "interrupted; the run in a is resumed by\n"
        "  python walk.py --config=configs/walk.py --workdir=a\n"
    )
    assert not (folder / "a" / "summary.json").exists()
    assert (folder / "a" / "ckpt" / "3").is_dir()


class Process(NamedTuple):
    """A program that was started; `output` waits for its end."""

    popen: subprocess.Popen

    def output(self):
        out, said = self.popen.communicate(timeout=60)
        return self.popen.returncode, out, said

    def wait_for(self, condition):
        """Waits until something is there that the program makes."""
        deadline = time.monotonic() + 60
        while not condition():
            assert self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def program(tmp_path):
    (tmp_path / "walk.py").write_text(PROGRAM)
    (tmp_path / "walk_config.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def run_program(program):
    """Starts the program in a process of its own, which does not outlive the test."""
    with contextlib.ExitStack() as stack:

        def started(*arguments, **environment):
            popen = subprocess.Popen(
                [sys.executable, "walk.py", "--config=walk_config.py", *arguments],
                cwd=program,
                env={
                    **os.environ,
                    "PYTHONPATH": str(REPOSITORY),
                    "NPROC": "1",
                    **environment,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(popen)
            stack.callback(popen.kill)
            return Process(popen)

        yield started


@pytest.mark.thorough
def test_killed_run_resumes_to_the_same_bits(program, run_program):
    arguments = ["--save_every=3", "--cfg.rate=0.05"]
    whole = run_program(*arguments, "--workdir=whole")
    killed = run_program(*arguments, "--workdir=killed", SECONDS_PER_STEP="0.1")
    killed.wait_for(
        lambda: list((program / "killed" / "ckpt").glob("[1-9]/SHA256SUMS"))
    )
    killed.popen.send_signal(signal.SIGKILL)
    killed.output()
    assert not (program / "killed" / "summary.json").exists()
    resumed = run_program(*arguments, "--workdir=killed")
    # Nothing of Orbax and nothing of absl is said.
    for process, first in ((whole, "new run in whole"), (resumed, "unfinished run in")):
        code, out, said = process.output()
        assert (code, out) == (0, "done\n")
        assert said.startswith(first)
        said = without_repository(said)
        assert said.split("\n", 1)[1].startswith(f"{NO_RECORD}finished: first ")
        assert said.count("\n") == 4

    folders = [program / name for name in ("whole", "killed")]
    first, second = (json.loads((f / "summary.json").read_text()) for f in folders)
    assert first["result"]["first"] == 0
    assert second["result"]["first"] > 0
    assert first["result"]["digest"] == second["result"]["digest"]
    assert first["state_sha256"] == second["state_sha256"]
    whole_lines, lines = (metrics.read(f / "metrics.jsonl") for f in folders)
    for line in [*whole_lines, *lines]:
        del line["time"]
    assert whole_lines == lines
    assert len(lines) == 40
    assert len(starts.read_all(program / "killed")) == 2


def test_help_shows_every_value(program, run_program):
    _, out, _ = run_program("--help").output()
    for line in (
        "A random walk with momentum, saved every few steps.",
        "--cfg.rate: step size",
        "(default: '0.1')",
        "(float, at least 0.0)",
        "--cfg.steps: number of steps",
        "--workdir: ",
        "--save_every: ",
        "--data_dir: ",
    ):
        assert line in out
    assert not (program / "runs").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SIGINT", 130),
        *(pytest.param(*one, marks=pytest.mark.thorough) for one in CODES.items()),
    ],
)
@pytest.mark.thorough
def test_interrupted_program(program, run_program, name, expected):
    process = run_program(SECONDS_PER_STEP="0.1")
    process.wait_for(lambda: list((program / "runs").glob("*/metrics.jsonl")))
    for _ in range(1 if name == "SIGINT" else 3):
        process.popen.send_signal(getattr(signal, name))
    code, _, said = process.output()
    assert code == expected
    command = said.splitlines()[-1].split()
    assert Path(command[0]).name.startswith("python")
    assert command[1:3] == ["walk.py", "--config=walk_config.py"]
    assert command[3].startswith("--workdir=runs/walk_config-20")
    assert "Traceback" not in said


@pytest.mark.thorough
def test_deterministic_computes_with_one_thread(program, run_program):
    (program / "walk.py").write_text(
        PROGRAM.replace(
            'print("done")',
            "from bilevel.experiments import determinism;"
            " print(determinism.num_xla_threads())",
        )
    )
    for arguments, expected in (([], "2\n"), (["--deterministic"], "1\n")):
        process = run_program(*arguments, NPROC="2" if not arguments else "")
        assert process.output()[:2] == (0, expected)
    (program / "walk.py").write_text(
        PROGRAM.replace("import optax", "import optax; x = jax.numpy.ones(3)")
    )
    code, _, said = run_program("--deterministic", NPROC="2").output()
    assert code == 1
    assert said.startswith("error: --deterministic: JAX has started with several")
    assert said.count("\n") == 1
