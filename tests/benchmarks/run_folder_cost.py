"""What folder, metrics and checkpoints cost a run: data cleaning on MNIST.

    BILEVEL_DATA=... python tests/benchmarks/run_folder_cost.py [--rounds=3]

The example runs as it is (5000 training, 5000 validation images, a checkpoint every 20
seconds), and with functions in place of the run's that do nothing. Reported for each:
wall and CPU time of `main`, and for the first how long the program waited for folder,
metrics and checkpoints: the records of the start, the calls of `run`, and closing it.
"""

import argparse
import contextlib
import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any

from bilevel.experiments import claim, config, load_config, open_run, starts
from bilevel.experiments.run_folder import Run
from examples.data_cleaning import main

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Clock:
    seconds: float = 0.0

    @contextlib.contextmanager
    def on(self) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def around(self, function: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.on():
                return function(*arguments, **options)

        return timed


def recorded(cfg: Any, folder: Path) -> tuple[float, float, float]:
    """Wall time, CPU time, and what of the former went into the folder."""
    clock, parts = Clock(), {}
    began, cpu = time.perf_counter(), time.process_time()
    with clock.on():
        claim(folder, cfg)
        opened = open_run(folder)
        run = opened.__enter__()
        program = str(ROOT / "examples" / "data_cleaning.py")
        starts.write(folder, program, [program], {"deterministic": False})
    parts["start"] = clock.seconds
    names = ("log", "save", "restore", "metrics", "record_data", "finish", "path")
    clocks = {name: Clock() for name in names}
    timed = {name: clocks[name].around(getattr(run, name)) for name in names}
    quietly(cfg, run._replace(**timed))
    with clock.on():
        opened.__exit__(None, None, None)
    ended = time.perf_counter() - began, time.process_time() - cpu
    parts |= {name: one.seconds for name, one in clocks.items()}
    parts["close"] = clock.seconds - parts["start"]
    print({name: round(seconds, 3) for name, seconds in parts.items()})
    return *ended, sum(parts.values())


def unrecorded(cfg: Any, folder: Path) -> tuple[float, float, float]:
    """The same without a folder; the metrics are kept in a list."""
    lines: list[dict[str, Any]] = []
    (folder / "figures").mkdir(parents=True)
    run = Run(
        directory=folder,
        data_dir=None,
        log=lambda step, **metrics: lines.append({"step": step, **metrics}),
        save=lambda step, state, **_: False,
        restore=lambda template, **_: None,
        metrics=lambda: lines,
        record_data=lambda **_: None,
        finish=lambda summary: None,
        path=lambda name: folder / name,
    )
    began, cpu = time.perf_counter(), time.process_time()
    quietly(cfg, run)
    return time.perf_counter() - began, time.process_time() - cpu, 0.0


def quietly(cfg: Any, run: Run) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        main(cfg, run)


def measure() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--validation", type=int, default=5000, help="images")
    options = parser.parse_args()
    base = load_config(ROOT / "configs" / "data_cleaning_mnist.py").config
    cfg = config.replace(base, {"num_validation": options.validation})
    with tempfile.TemporaryDirectory() as scratch:
        unrecorded(cfg, Path(scratch) / "warm-up")  # compiles
        for number in range(options.rounds):
            rows = {
                "recorded": recorded(cfg, Path(scratch) / f"a{number}"),
                "unrecorded": unrecorded(cfg, Path(scratch) / f"b{number}"),
            }
            for name, (wall, cpu, waited) in rows.items():
                print(
                    f"{name:10} {wall:6.2f} s wall, {cpu:6.2f} s CPU, of which"
                    f" {waited:5.2f} s ({waited / wall:.1%}) in the folder",
                    flush=True,
                )


if __name__ == "__main__":
    measure()
