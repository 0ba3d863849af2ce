"""Kills a run, or damages its folder, again and again; all of it must be noticed.

    python tests/benchmarks/damage_a_run.py flip [--seed=0]
    python tests/benchmarks/damage_a_run.py truncate
    python tests/benchmarks/damage_a_run.py remove
    python tests/benchmarks/damage_a_run.py kill

`flip`, `truncate` and `remove` damage one file of a finished run, drawn from all files
(twenty times with equal chances, twenty times in proportion to its size). Detected
means: `python -m bilevel check` ends with code 1 and `load_run` raises, and both name
the file. `kill` sends SIGKILL at random moments, starts the same command again until
the run is finished, and compares it with one that was not disturbed.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bilevel
from bilevel.__main__ import main as command_line
from bilevel.experiments import metrics
from bilevel.experiments.folders import FolderError

PROGRAM = """
import bilevel, jax, jax.numpy as jnp
from bilevel.experiments import config

def main(cfg, run):
    run.record_data(train=jnp.arange(1000.0))
    state = {"w": jnp.zeros((200, 200)), "key": jax.random.key(cfg.seed)}
    state, done = run.restore(state) or (state, 0)
    for step in range(done + 1, 31):
        noise = jax.random.normal(jax.random.fold_in(state["key"], step), (200, 200))
        state["w"] = 0.9 * state["w"] + noise
        run.log(step, loss=jnp.mean(state["w"] ** 2))
        run.save(step, state, metric=step % 7)
    run.finish({"loss": jnp.mean(state["w"] ** 2)})

if __name__ == "__main__":
    bilevel.launch(main, config.of(seed=0))
"""


def started(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Starts the program, to write into a folder beside it."""
    command = [sys.executable, "program.py", f"--workdir={name}", "--save_every=1"]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)


def damage(path: Path, kind: str, rng: random.Random) -> None:
    """Damages a file."""
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    path.unlink()
    if kind == "flip":
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(data))
    if kind == "truncate":
        path.write_bytes(bytes(data[: bit // 8]))


def is_detected(folder: Path, name: str) -> bool:
    """Says whether both the command and the function name the file."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = command_line(["check", str(folder)])
    is_named = code == 1 and f"{name}: " in said.getvalue()
    try:
        bilevel.load_run(folder)
    except FolderError as error:
        return is_named and f"{name}: " in str(error)
    return False


def damages(scratch: Path, kind: str, rng: random.Random) -> None:
    """Damages a finished run forty times."""
    started(scratch, "whole").wait()
    whole = scratch / "whole"
    files = sorted(one for one in whole.rglob("*") if one.is_file())
    files = [one for one in files if one.stat().st_size]
    sizes = [one.stat().st_size for one in files]
    count = 0
    for number in range(40):
        shutil.copytree(whole, scratch / "copy")
        (file,) = rng.choices(files, sizes if number >= 20 else None)
        name = file.relative_to(whole).as_posix()
        damage(scratch / "copy" / name, kind, rng)
        good = is_detected(scratch / "copy", name)
        count += good
        print(f"{number}: {name}: {'detected' if good else 'MISSED'}", flush=True)
        shutil.rmtree(scratch / "copy")
    print(f"{kind}: {count} of 40 detected, of {len(files)} files")


def kills(scratch: Path, rng: random.Random) -> None:
    """Kills a run until it is finished, and compares."""
    started(scratch, "whole").wait()
    killed, num_kills = scratch / "killed", 0
    while not (killed / "summary.json").exists():
        process = started(scratch, "killed")
        before = size(killed / "digests.jsonl")
        while process.poll() is None and size(killed / "digests.jsonl") <= before:
            time.sleep(0.001)
        if num_kills < 15:  # after a step has begun to be saved
            time.sleep(rng.uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
            num_kills += 1
        process.wait()
    found = [record(scratch / name) for name in ("whole", "killed")]
    command = [sys.executable, "-m", "bilevel", "check", str(scratch / "killed")]
    code = subprocess.run(command, check=False).returncode
    same = [one == other for one, other in zip(*found, strict=True)]
    aside = sorted(one.name for one in (scratch / "killed").glob("*-set-aside*"))
    print(f"{num_kills} kills; the same metrics, digests, result and state: {same}")
    print(f"check: exit code {code}; set aside: {', '.join(aside) or 'nothing'}")


def size(path: Path) -> int:
    """Returns the bytes of a file, 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0


def record(folder: Path) -> tuple[list[dict], list[dict], dict, str]:
    """Returns what a run was, without times."""
    lines = [
        [{**line, "time": None} for line in metrics.read(folder / name)]
        for name in ("metrics.jsonl", "digests.jsonl")
    ]
    summary = json.loads((folder / "summary.json").read_text())
    return lines[0], lines[1], summary["result"], summary["state_sha256"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("flip", "truncate", "remove", "kill"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "program.py").write_text(PROGRAM)
        if options.kind == "kill":
            kills(Path(scratch), rng)
        else:
            damages(Path(scratch), options.kind, rng)


if __name__ == "__main__":
    main()
