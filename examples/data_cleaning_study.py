"""Runs data cleaning with several seeds; means, and paired differences to bilevel.

    python examples/data_cleaning_study.py --config=configs/data_cleaning_mnist.py \
        --workdir=runs/study --seeds=0,1,2,3,4 --set=num_validation=500

Seed s has its run in the folder `<workdir>/<s>`; the same command again skips those
that are finished.  Prints Markdown: mean ± standard deviation over the seeds.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from bilevel import load_run
from bilevel.experiments import Run, claim, config, load_config, start_run
from bilevel.experiments.command_line import from_text
from examples.data_cleaning import main

_CONFIG = flags.DEFINE_string("config", None, "configuration file", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs", required=True)
_DATA = flags.DEFINE_string("data_dir", None, "folder of the data sets")
_SEEDS = flags.DEFINE_list("seeds", "0,1,2,3,4", "seeds")
_SET = flags.DEFINE_multi_string("set", [], "<path>=<value>, replaces a value")


def finished(cfg: Any, directory: Path) -> dict[str, Any]:
    """The summary of a run, which is made if it is not there."""
    if claim(directory, cfg) != "finished":
        with start_run(cfg, directory, data_dir=_DATA.value) as run:
            quietly(cfg, run)
    return (load_run(directory).summary or {})["result"]


def quietly(cfg: Any, run: Run) -> None:
    """Runs `main`, and keeps what it prints in a file."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main(cfg, run)
    run.path("output.txt").write_text(text.getvalue())


def spread(values: Sequence[float], scale: float = 1.0, form: str = ".2f") -> str:
    """`mean ± standard deviation` (that of a sample)."""
    array = scale * np.asarray(values)
    sd = array.std(ddof=1) if len(array) > 1 else float("nan")
    return f"{array.mean():{form}} ± {sd:{form}}"


def study(_: Sequence[str]) -> None:
    """Runs what is missing and prints the table."""
    logging.set_verbosity(logging.WARNING)
    base = load_config(_CONFIG.value).config
    leaves = config.leaves(type(base))
    pairs = [one.partition("=") for one in _SET.value]
    changes = {path: from_text(leaves[path], text) for path, _, text in pairs}
    summaries = []
    for seed in _SEEDS.value:
        cfg = config.replace(base, {**changes, "seed": int(seed)})
        began = time.monotonic()
        summaries.append(finished(cfg, Path(_WORKDIR.value) / seed))
        print(f"seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    seconds = spread([one["seconds"] for one in summaries], form=".0f")
    print(f"\n{_WORKDIR.value}, {len(summaries)} seeds, {seconds} s a seed\n")
    print("| trained on | test accuracy, % | bilevel minus this | F1 |")
    print("|---|---|---|---|")
    ours = [one["rows"]["bilevel"]["test_accuracy"] for one in summaries]
    for name in summaries[0]["rows"]:
        rows = [one["rows"][name] for one in summaries]
        accuracies = [row["test_accuracy"] for row in rows]
        gains = spread(np.subtract(ours, accuracies).tolist(), 100, "+.2f")
        gains = "" if name == "bilevel" else gains.replace("± +", "± ")
        has_found = rows[0]["found"] is not None
        f1 = spread([r["found"]["f1"] for r in rows], 1, ".3f") if has_found else ""
        print(f"| {name} | {spread(accuracies, 100)} | {gains} | {f1} |")


if __name__ == "__main__":
    app.run(study)
