"""Another project's analysis: `python read_back.py <folder of a run>`."""

import json
import sys
from pathlib import Path

import bilevel


def curve(directory: Path) -> tuple[list[int], list[float]]:
    """Steps and values of the outer objective."""
    run = bilevel.load_run(directory)
    steps, values = run.column("value")
    rule: str = run.config["rule"]
    names: list[dict[str, object]] = run.metrics
    del rule, names
    return steps, values


def main() -> None:
    """Prints the curve, the summary, and a leaf of the last state."""
    directory = Path(sys.argv[1])
    run = bilevel.load_run(directory)
    steps, values = curve(directory)
    finished = run.summary is not None
    report = {
        "steps": steps,
        "values": values,
        "finished": finished,
        "outer": run.state()[".outer"].tolist(),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
