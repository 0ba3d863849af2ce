"""Where the time of a few steps goes: compilation, inner solve, adjoint, host.

`--profile=20` traces 20 steps with JAX's profiler, once the first chunk is compiled and
done, into the folder of the run:

    profile/trace/   for Perfetto (ui.perfetto.dev) or TensorBoard
    profile/hlo/     the compiled programs, which say what belongs to which scope
    profile/table.txt

A table says, per step: the time in which some operation of the inner solve, the adjoint
solve or the certificate ran (the scopes `inner_solve`, `adjoint`, `certificate` of the
core), in which others ran (outer objective, optimiser, data), and in which none did
(host: Python, logging, waiting). What it costs: the trace slows small steps down, so
that shares are to be trusted more than seconds.
"""

import contextlib
import glob
import gzip
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

SCOPES = ("inner_solve", "adjoint", "certificate")
FOLDER = "profile"

# XLA on a CPU would make one operation of a small loop, inner solve, adjoint and all.
# An option that a version of XLA does not know is ignored.
_LOOPS = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=0"

_COMPILE_EVENTS = "/jax/core/compile/"
_METADATA = re.compile(
    r"%?(?P<op>[\w.-]+) = [^\n]*?metadata=\{[^}\n]*?op_name=\"(?P<name>[^\"]*)\""
)


class Table(NamedTuple):
    """Seconds a step.

    Attributes:
      num_steps: that were traced.
      wall: of a step.
      parts: `{scope: seconds}`, 'other' for operations in none of them.
      compile: tracing, lowering and compilation.
      host: the rest, in which no operation ran.
      compile_seconds: in all, since the program began.
    """

    num_steps: int
    wall: float
    parts: dict[str, float]
    compile: float
    host: float
    compile_seconds: float

    def text(self) -> str:
        """The table."""
        rows = {**self.parts, "compile": self.compile, "host": self.host}
        rows["step"] = self.wall
        lines = [f"{'':12}  ms a step   share"]
        lines += [
            f"{name:12}  {1e3 * seconds:9.3f}  {seconds / self.wall:6.1%}"
            for name, seconds in rows.items()
        ]
        lines += [
            f"{self.num_steps} steps traced; compilation took"
            f" {self.compile_seconds:.1f} s in all"
        ]
        return "\n".join(lines)


def prepare() -> Path:
    """Asks XLA to write down what it compiles; before JAX starts.

    Returns:
      The folder where. Not that of the run: XLA takes no path with a space in it.
    """
    folder = Path(tempfile.mkdtemp(prefix="bilevel-hlo-"))
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text {_LOOPS}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return folder


@contextlib.contextmanager
def profiler(
    directory: Path, programs: Path, num_steps: int, say: Callable[[str], None]
) -> Iterator[Callable[[int], None]]:
    """Traces some steps, and writes and says the table.

    Args:
      directory: of the run.
      programs: from `prepare`; it is moved into the folder of the run.
      num_steps: to trace; fewer if the run ends before.
      say: shows the table.

    Yields:
      `look(step)`, to be called whenever steps are done. The trace begins at the first
      call.
    """
    folder = directory / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    seconds = compile_clock()
    first, last, began, compiled, is_done = -1, -1, 0.0, 0.0, False

    def look(step: int) -> None:
        nonlocal first, last, began, compiled
        if is_done or step <= last:
            return
        last = step
        if first < 0:
            first = step
            jax.profiler.start_trace(str(folder / "trace"))
            began, compiled = time.perf_counter(), seconds()
        elif step - first >= num_steps:
            end()

    def end() -> None:
        nonlocal is_done
        is_done = True
        wall = time.perf_counter() - began
        jax.profiler.stop_trace()
        if last == first:
            say(f"no profile: the run ended at step {last}, where the trace began")
            return
        (folder / "hlo").mkdir(parents=True, exist_ok=True)
        for one in programs.glob("*after_optimizations.txt"):
            shutil.copy(one, folder / "hlo")
        times = (wall, seconds() - compiled, seconds())
        table = read(folder, last - first, *times)
        (folder / "table.txt").write_text(f"{table.text()}\n")
        say(f"profile of steps {first + 1} to {last}:\n{table.text()}")

    try:
        yield look
    finally:
        if first < 0:
            say("no profile: run.save, which says that steps are done, was not called")
        elif not is_done:
            end()
        shutil.rmtree(programs, ignore_errors=True)


def compile_clock() -> Callable[[], float]:
    """Returns a function that says how long JAX has compiled since this call."""
    total = 0.0

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        nonlocal total
        if event.startswith(_COMPILE_EVENTS):
            total += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: total


def read(
    folder: Path, num_steps: int, wall: float, compiled: float, compile_seconds: float
) -> Table:
    """Makes the table of a trace.

    Args:
      folder: of the profile.
      num_steps: that were traced.
      wall: seconds of all of them.
      compiled: seconds of compilation in them.
      compile_seconds: passed on.
    """
    scopes = op_scopes((folder / "hlo").glob("*after_optimizations.txt"))
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in _events(folder / "trace"):
        arguments = event.get("args", {})
        if "hlo_op" not in arguments:
            continue
        op = (arguments.get("hlo_module", ""), arguments["hlo_op"])
        span = (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        spans.setdefault(scopes.get(op, "other"), []).append(span)
    everything = covered(span for one in spans.values() for span in one)
    parts = {scope: covered(spans.get(scope, [])) / num_steps for scope in SCOPES}
    # An operation around others, the loop over the steps, is in none of the scopes.
    busy = everything / num_steps
    parts["other"] = max(busy - sum(parts.values()), 0.0)
    each, compiling = wall / num_steps, compiled / num_steps
    host = max(each - busy - compiling, 0.0)
    return Table(num_steps, each, parts, compiling, host, compile_seconds)


def op_scopes(paths: Iterable[Path]) -> dict[tuple[str, str], str]:
    """Returns `{(module, operation): scope}` of compiled programs.

    Args:
      paths: files `module_0001.jit_step.cpu_after_optimizations.txt`.
    """
    found = {}
    for path in paths:
        module = path.name.split(".")[1]
        for match in _METADATA.finditer(path.read_text(errors="replace")):
            if scope := scope_of(match["name"]):
                found[module, match["op"]] = scope
    return found


def scope_of(name: str) -> str:
    """Returns the outermost of our scopes in the name of an operation, or ''.

    Example:
      >>> scope_of("jit(many)/while/body/inner_solve/while/body/dot_general")
      'inner_solve'
    """
    parts = re.split(r"[/()]", name)
    return next((part for part in parts if part in SCOPES), "")


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the length of a union of intervals.

    Example:
      >>> covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
      4.0
    """
    total, end = 0.0, -float("inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _events(folder: Path) -> list[Mapping[str, Any]]:
    """Returns the complete events of the trace."""
    paths = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
    events = []
    for path in paths:
        with gzip.open(path, "rt") as file:
            events += json.load(file)["traceEvents"]
    return [one for one in events if one.get("ph") == "X"]
