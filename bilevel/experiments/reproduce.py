"""Running a recorded run again: bit-identical, or where it differs and why.

The program of the record is started in the current folder (a clone of its repository)
with the configuration of the record, in a folder of its own. Code, environment and
data are compared with the record, then every line of metrics (but for times) and the
sha256 of every state that was saved.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.experiments import (
    code_difference,
    config,
    folders,
    metrics,
    printable,
    reproduction_plan,
    starts,
)
from bilevel.experiments.loaded import LoadedRun, load_run
from bilevel.experiments.reproduction_plan import Plan, ReproduceError


class Reproduction(NamedTuple):
    """What came of it.

    Attributes:
      changes: what differs from the record, the likeliest cause of other bits first:
        configuration, code, data, threads, packages, flags, devices.
      first_difference: None if all bits are the same; else what differs first.
      step: of that difference.
      compared: how many lines of metrics, and states, were compared.
      last_step: the last step that was compared.
      equal: what is known to be that of the record, if `changes` are all there is.
      unknown: what may differ as well, since nobody recorded it.
      threads: the largest number of threads.
    """

    changes: list[str]
    first_difference: str | None
    step: int | None
    compared: tuple[int, int]
    last_step: int
    equal: Sequence[str] = ()
    unknown: Sequence[str] = ()
    threads: int = 1

    def text(self) -> str:
        """The verdict in words."""
        lines, states = self.compared
        what = f"{lines} lines of metrics and {states} states, to step {self.last_step}"
        changed = [f"  {printable.line(one)}" for one in self.changes]
        if self.first_difference is None:
            although = ["although this differs:"] if changed else []
            return "\n".join([f"bit-identical: {what}", *although, *changed])
        cause = (
            "likely cause, the likeliest first:"
            if changed
            else f"no cause is known: {', '.join(self.equal)} are those of the record"
        )
        rest = [f"not known: {'; '.join(self.unknown)}"] if self.unknown else []
        if not changed and self.threads > 1:
            rest.append(
                "XLA with several threads is not always deterministic; repeat both runs"
                " with --deterministic"
            )
        head = f"differs first at step {self.step}: {self.first_difference}"
        lines = [head, f"compared: {what}", cause]
        return "\n".join([*map(printable.line, lines), *changed, *rest])


def reproduce(
    path: Path,
    *,
    steps: int | None = None,
    program: str | Path | None = None,
    arguments: Sequence[str] = (),
    confirm: Callable[[Plan], bool] = lambda plan: not plan.foreign,
) -> Reproduction:
    """Repeats a run and compares. The code of the record's folder is executed.

    Args:
      path: the folder of the record; nothing in it is changed.
      steps: stop after this step; by default all of them.
      program: the file to run; by default that of the record, in the repository that
        the current folder is in.
      arguments: more flags for the program, `--cfg.seed=1`, `--data_dir=...`.
      confirm: `confirm(plan)` says whether that is to be run. By default nothing is
        that is not the clone's.

    Raises:
      ReproduceError: there is no record, no program of the clone, no consent, or the
        program failed.
      FolderError, MetricsError: the folder is damaged.
    """
    record = load_run(path)
    if not record.starts:
        raise ReproduceError(f"{path} has no record of a start: was it launched?")
    first = record.starts[0]
    if program is None and not first.command.get("is_launched", True):
        raise ReproduceError(
            f"{path} was not made by bilevel.launch but in a notebook or a script of"
            " its own: run that again (starts/1 has its cells or its file), or pass"
            " --program=<file> of a launched program that does the same"
        )
    try:
        plan = reproduction_plan.make(record, program, arguments)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ReproduceError(f"{path}: its record is damaged ({error!r})") from error
    if not confirm(plan):
        raise ReproduceError(
            "not run, for this is not the code of the clone:\n  "
            + "\n  ".join(plan.foreign)
            + "\nread it, and pass --yes"
        )
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / "again"
        command = [*plan.command, f"--workdir={again}"]
        if steps is not None:
            command += [f"--stop_after={steps}"]
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        if not (again / folders.CONFIG).exists() or done.returncode != 0:
            raise ReproduceError(
                f"the program ended with code {done.returncode}; what it said stands"
                f" above. It was started by\n  {' '.join(command)}"
            )
        return compare(record, load_run(again), steps)


def compare(
    record: LoadedRun, again: LoadedRun, steps: int | None = None
) -> Reproduction:
    """Compares two runs, to the last step that both have made or to `steps`."""
    changes = [
        f"config {one}" for one in config.difference(record.config, again.config)
    ]
    changes += _data_changes(record.data, again.data)
    changes += starts.difference(record.starts[0], again.starts[0])
    # A run that was resumed elsewhere has a history of causes.
    for start in record.starts[1:]:
        for one in starts.difference(record.starts[0], start):
            changes.append(f"the record was resumed with another {one}")
    last = min(_last_step(record), _last_step(again))
    last = last if steps is None else min(last, steps)
    lines = [_until(one.metrics, last) for one in (record, again)]
    digests = [
        _until(metrics.read(one.directory / folders.DIGESTS), last)
        for one in (record, again)
    ]
    found = [
        difference
        for difference in (
            _first_difference(*map(_without_times, lines)),
            _first_state(*digests),
            _end_difference(record, again) if steps is None else None,
        )
        if difference is not None
    ]
    compared = (min(map(len, lines)), len(_common(*digests)))
    if compared == (0, 0):
        raise ReproduceError(
            f"nothing to compare: {record.directory} has neither metrics nor states"
            f" up to step {last}"
        )
    step, what = min(found) if found else (None, None)
    unknown_code = _unknown_code(record, again)
    has_data = bool(record.data and again.data)
    equal = [
        "configuration",
        *([] if unknown_code else ["code"]),
        *(["recorded data"] if has_data else []),
        "environment",
        "threads",
    ]
    unknown = unknown_code + (
        [] if has_data else ["the data, of which none is recorded"]
    )
    environments = [one.starts[0].environment for one in (record, again)]
    if any(one.get("str_hash") != "fixed" for one in environments):
        unknown.append("the order of sets of texts (PYTHONHASHSEED is not set)")
    threads = max(one.get("threads", 1) for one in environments)
    return Reproduction(changes, what, step, compared, last, equal, unknown, threads)


def _unknown_code(record: LoadedRun, again: LoadedRun) -> list[str]:
    """Lists what one of the records, or both, does not say of the code."""
    sources = [one.starts[0].source for one in (record, again)]
    lines = [line for one in sources for line in code_difference.unknown(one)]
    return [*dict.fromkeys(lines)]


def _data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"data {name}: {_data_text(before.get(name))} -> {_data_text(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        # A run that was stopped early may not have come to all of its data.
        if before.get(name) != now.get(name) and name in now
    ]


def _data_text(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "none"
    shape = "x".join(map(str, entry["shape"])) or "scalar"
    seed = f" split seed {entry['split_seed']}" if "split_seed" in entry else ""
    return f"{entry['dtype']} {shape} sha256 {entry['sha256'][:12]}{seed}"


def _last_step(run: LoadedRun) -> int:
    lines = [*run.metrics, *metrics.read(run.directory / folders.DIGESTS)]
    return max((line["step"] for line in lines), default=0)


def _until(lines: Sequence[dict[str, Any]], last: int) -> list[dict[str, Any]]:
    return [line for line in lines if line["step"] <= last]


def _without_times(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in line.items()
            if name != "time" and not name.endswith("seconds")
        }
        for line in lines
    ]


def _first_difference(
    record: Sequence[dict[str, Any]], again: Sequence[dict[str, Any]]
) -> tuple[int, str] | None:
    for old, new in zip(record, again, strict=False):
        # As text: NaN is not equal to itself.
        if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):
            continue
        names = [
            name
            for name in {**old, **new}
            if repr(old.get(name)) != repr(new.get(name))
        ]
        changed = [f"{n} was {old.get(n)!r}, is {new.get(n)!r}" for n in names]
        return min(old["step"], new["step"]), ", ".join(changed)
    if len(record) != len(again):
        longer = max(record, again, key=len)
        step = longer[min(len(record), len(again))]["step"]
        return step, f"{len(record)} lines of metrics were logged, now {len(again)}"
    return None


def _end_difference(record: LoadedRun, again: LoadedRun) -> tuple[int, str] | None:
    """Compares where finished runs ended, and their results without times."""
    if record.summary is None:
        return None  # only a part of it is there to compare
    last = _last_step(record), _last_step(again)
    if again.summary is None or last[0] != last[1]:
        ends = [
            f"{'ended' if run.summary else 'not finished'} at step {step}"
            for run, step in zip((record, again), last, strict=True)
        ]
        return min(last), f"the record {ends[0]}, now {ends[1]}"
    old = _flat(record.summary["result"], "result")
    new = _flat(again.summary["result"], "result")
    for name in {**old, **new}:
        if json.dumps(old.get(name)) != json.dumps(new.get(name)):
            return last[0], f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
    return None


def _flat(value: Any, name: str) -> dict[str, Any]:
    """Returns the numbers of a result by their path, times left out."""
    if name.endswith("seconds"):
        return {}
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(one, f"{name}.{key}") for key, one in value.items()]
    return {path: one for part in parts for path, one in part.items()}


def _common(
    record: Sequence[dict[str, Any]], again: Sequence[dict[str, Any]]
) -> dict[int, tuple[str, str]]:
    old, new = ({line["step"]: line["sha256"] for line in r} for r in (record, again))
    return {step: (old[step], new[step]) for step in sorted(old.keys() & new.keys())}


def _first_state(
    record: Sequence[dict[str, Any]], again: Sequence[dict[str, Any]]
) -> tuple[int, str] | None:
    for step, (old, new) in _common(record, again).items():
        if old != new:
            return step, f"the state had sha256 {old[:12]}, has {new[:12]}"
    return None
