"""Flips one random bit in a checkpoint, again and again; every flip must be detected.

    python tests/benchmarks/flip_bits.py [--seed=0]

Two checkpoints are saved of a state like that of data cleaning on MNIST. Twenty times
the file is drawn uniformly from the files of the last checkpoint, twenty times in
proportion to its size. Detected means: restoring fails, names that file, and offers a
step that restores.
"""

import argparse
import random
import re
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from bilevel.experiments.checkpoint import CheckpointError, load, open_checkpoints


def flipped(folder: Path, by_size: bool, rng: random.Random) -> str:
    """Flips a bit of a file of the last step, and returns its name."""
    step = max((one for one in folder.iterdir()), key=lambda one: int(one.name))
    files = sorted(one for one in step.rglob("*") if one.is_file())
    files = [one for one in files if one.stat().st_size]
    weights = [one.stat().st_size if by_size else 1 for one in files]
    (file,) = rng.choices(files, weights)
    data = bytearray(file.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(bytes(data))
    return file.relative_to(step).as_posix()


def make_state(step: int) -> dict:
    key = jax.random.key(step)
    return {
        "models": jax.random.normal(key, (784, 30)),
        "logits": jax.random.normal(key, (5000,)),
        "step": jnp.asarray(step),
        "key": key,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    rng = random.Random(parser.parse_args().seed)
    detected = 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        with open_checkpoints(whole) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, make_state(step))
        for number in range(40):
            copy = Path(scratch) / f"copy{number}"
            shutil.copytree(whole, copy)
            name = flipped(copy, number >= 20, rng)
            said = ""
            try:
                with open_checkpoints(copy) as checkpoints:
                    checkpoints.restore(make_state(0))
            except CheckpointError as error:
                said = str(error)
            offered = re.search(r"--restore_step=(\d+)", said)
            good = f"\n  {name}: " in said or f"/{name} is damaged" in said
            if good and offered is not None:
                load(copy, step=int(offered[1]))  # raises if it is not intact
                detected += 1
            print(f"{number}: {name}: {'detected' if good else f'MISSED {said[:200]}'}")
    print(f"{detected} of 40 detected, the file named, an intact step offered")


if __name__ == "__main__":
    main()
