"""Kills a run with SIGKILL at random moments; every one must end with the same bits.

    BILEVEL_DATA=... python tests/benchmarks/kill_and_resume.py --folder=DIR

The run is data cleaning on MNIST (5000 training, 500 validation images) with
--deterministic. One run is left alone; the others are killed once, half of them at a
random moment of a run's time, half of them at a moment after a random save has begun,
and started again by the same command. Reported: how many kills fell inside a save
(an unfinished folder was seen in the checkpoints), and whether all states are the same.
The same command goes on where it was.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(folder: Path) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "examples" / "data_cleaning.py"),
        f"--config={ROOT / 'configs' / 'data_cleaning_mnist.py'}",
        "--cfg.num_validation=500",
        "--deterministic",
        "--save_every=1",  # a save after every chunk, more often than by default
        f"--workdir={folder}",
    ]


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (folder.parent / f"{folder.name}.log").open("a")
    return subprocess.Popen(command(folder), stdout=log, stderr=log, env=environment)


def finish(folder: Path) -> None:
    assert start(folder).wait() == 0, f"see {folder}.log"


def unfinished(folder: Path) -> list[str]:
    """Folders of saves that are not complete."""
    return [
        one.name
        for one in (folder / "ckpt").glob("*")
        if one.is_dir() and not (one / "SHA256SUMS").exists()
    ]


def killed(folder: Path, seconds: float, rng: random.Random, in_save: bool) -> dict:
    """Starts a run and kills it; says when, and whether in a save."""
    process = start(folder)
    began = time.monotonic()
    if in_save:
        wanted, seen, was = rng.randint(1, 15), 0, False
        while process.poll() is None and seen < wanted:
            now = bool(unfinished(folder))
            seen, was = seen + (now and not was), now
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.05))
    else:
        delay = rng.uniform(0.05, 0.95) * seconds
        while process.poll() is None and time.monotonic() - began < delay:
            time.sleep(0.01)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = unfinished(folder)
    return {
        "seconds": round(time.monotonic() - began, 2),
        "inside_save": bool(found),
        "unfinished": found,
        "ended_before": ended,
    }


def state(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    rows = {n: r["test_accuracy"] for n, r in summary["result"]["rows"].items()}
    return {"state": summary["state_sha256"], "rows": rows}


def lines(folder: Path) -> list[dict]:
    text = (folder / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in one.items() if k != "time"} for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    whole = options.folder / "whole"
    if not (whole / "summary.json").exists():
        began = time.monotonic()
        finish(whole)
        (options.folder / "seconds").write_text(str(time.monotonic() - began))
    seconds = float((options.folder / "seconds").read_text())
    print(f"uninterrupted: {seconds:.0f} s, state {state(whole)['state'][:16]}")
    count = same = inside = 0
    for number in range(options.kills):
        folder = options.folder / f"killed{number}"
        note = options.folder / f"killed{number}.json"
        rng = random.Random(1000 * options.seed + number)
        if not note.exists():
            told = killed(folder, seconds, rng, in_save=number % 2 == 1)
            note.write_text(json.dumps(told))
        told = json.loads(note.read_text())
        if not (folder / "summary.json").exists():
            finish(folder)
        equal = state(folder) == state(whole) and lines(folder) == lines(whole)
        killed_at_all = not told["ended_before"]  # the others show nothing
        count, same = count + killed_at_all, same + (equal and killed_at_all)
        inside += told["inside_save"]
        print(f"{number}: {told}, {'same bits' if equal else 'OTHER BITS'}", flush=True)
    print(f"{same} of {count} end with the same bits; {inside} inside a save")
    sys.exit(same != count)


if __name__ == "__main__":
    main()
