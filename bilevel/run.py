"""Runs an outer algorithm: chunks of a compiled scan, driven from the host."""

import hashlib
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import closures
from bilevel.iteration import iterate_recorded
from bilevel.problem import Batches, Info, Samples, Solver, State, as_samples


class Progress(Protocol):
    """Called on the host after every chunk; shows, and changes nothing."""

    def __call__(self, step: int, num_steps: int, metrics: dict[str, float], /) -> None:
        """Shows `metrics` (of the last step) after `step` of `num_steps` steps."""


Callback = Callable[[Any, Any], bool | None]
"""`callback(state, infos) -> stop`: called on the host after every chunk, with the
state and the chunk's infos (stacked, NumPy); a true value ends the run."""


def run(
    solver: Solver[State, Info],
    state: State,
    samples: Samples | Batches,
    *,
    num_steps: int,
    chunk_size: int | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[State, Info]:
    """Makes `num_steps` updates of `state`, and returns it with the history.

    The updates are compiled once, as a loop of up to `chunk_size` steps (another run of
    the same program, with other values, finds it compiled); between chunks the host
    shows progress, calls callbacks and notices Ctrl-C, which ends the run with the
    state reached (a second Ctrl-C raises `KeyboardInterrupt`).  Batches depend on the
    state's key and step alone, counted over all runs, so that neither the chunk size
    nor an interruption changes the result.  Data that samplers and objectives close
    over are passed to the compiled program as arguments, not copied into it.

    Args:
        solver: an outer algorithm, from `bilevel.solvers`.
        state: from `solver.init`, or of an earlier run; it stays valid (a copy is
            donated).
        samples: two samplers, or one `Batches` for all steps.
        num_steps: how many updates, on top of those `state` has seen.
        chunk_size: updates between two looks of the host; None means as many as take a
            tenth of a second, with callbacks 10.  The reports of the steps stay on the
            device until the end; progress fetches those of a chunk's last step.
        progress: see `Progress`; `bilevel.experiments.progress` has one.
        callbacks: see `Callback`.

    Returns:
        The last state, and the infos of all steps stacked on a first axis `[steps]`, as
        NumPy arrays.

    Raises:
        ValueError: `num_steps` or `chunk_size` out of range, `samples` of another type.

    Example:
        >>> import optax
        >>> from bilevel import Problem, solvers
        >>> problem = Problem(lambda w, x, b: (w - x) ** 2, lambda w, x, b: w**2)
        >>> solver = solvers.two_loop(problem, outer_optimizer=optax.sgd(0.1))
        >>> state = solver.init(0.0, 1.0, jax.random.key(0))
        >>> state, history = run(solver, state, Batches(), num_steps=5)
        >>> int(state.step), history.value.shape
        (5, (5,))
    """
    if num_steps < 0 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(
            "run: num_steps must be >= 0 and chunk_size >= 1, got "
            f"{num_steps} and {chunk_size}."
        )

    # Arguments, so that other values are no other program.
    is_one = isinstance(samples, Batches)
    batches = jax.tree.map(jnp.asarray, samples) if is_one else None
    drawn = as_samples(samples)

    def step(carry: Any, batches: Any) -> tuple[Any, Any]:
        return solver.update(carry, drawn if batches is None else as_samples(batches))

    # Donation would delete the caller's buffers.
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    hoisted, constants = closures.hoist(step, state, batches)
    shapes = jax.eval_shape(hoisted, constants, state, batches)[1]
    if num_steps == 0:
        empty = jax.tree.map(lambda s: np.zeros((0, *s.shape), s.dtype), shapes)
        return state, empty
    if chunk_size is None and not callbacks:
        lengths = _Lengths.by_time(shapes)
    else:
        lengths = _Lengths(min(chunk_size or 10, num_steps))
    capacity = lengths.capacity

    def many(carry: Any, rest: Any, length: jax.Array) -> tuple[Any, Any]:
        constants, batches = rest
        one = lambda c: hoisted(constants, c, batches)
        return iterate_recorded(one, carry, num_steps=length, capacity=capacity)

    rest = (constants, batches)
    compiled = _compiled_once(many, state, rest)
    chunks: list[tuple[Any, int]] = []
    done = 0
    with _interrupts() as interrupted:
        while done < num_steps and not interrupted.is_set():
            began = time.monotonic()
            length = min(lengths.length, num_steps - done)
            state, info = compiled(state, rest, np.int32(length))
            # Otherwise the host would run ahead, and nobody could stop it.
            jax.block_until_ready(info)
            lengths = lengths.after(time.monotonic() - began)
            done += length
            if progress is not None:
                progress(done, num_steps, last_metrics(_row(info, length - 1)))
            if callbacks:
                info = _first(info, length)
            chunks.append((info, length))
            if any([callback(state, info) for callback in callbacks]):
                break
    infos = [_first(info, length) for info, length in chunks]
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *infos)


class _Lengths(NamedTuple):
    """How many steps the next chunk takes.

    Attributes:
        length: of the next chunk.
        capacity: the most steps of a chunk.
    """

    length: int
    most: int | None = None

    @property
    def capacity(self) -> int:
        """The most steps of any chunk: a compiled program has room for their infos."""
        return self.length if self.most is None else self.most

    @classmethod
    def by_time(cls, info: Any) -> "_Lengths":
        """From one step on, as long as chunks are short and their infos small."""
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(info))
        return cls(1, most=max(1, min(_MOST_STEPS, _MOST_BYTES // max(size, 1))))

    def after(self, seconds: float) -> "_Lengths":
        """The next, after a chunk that took so long."""
        if self.most is None or seconds > _CHUNK_SECONDS / 2:
            return self
        return self._replace(length=min(2 * self.length, self.most))


_CHUNK_SECONDS = 0.1
_MOST_STEPS = 1024
_MOST_BYTES = 2**20


def _row(rows: Any, place: int) -> Any:
    """One step's part of stacked infos, as stacked infos, on the host."""
    return jax.tree.map(lambda x: np.asarray(x[place])[None], rows)


def _first(rows: Any, length: int) -> Any:
    """The rows of `length` steps, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[:length], rows)


def last_metrics(infos: Any) -> dict[str, float]:
    """The last entry of every scalar field of a chunk's infos, by name.

    Args:
        infos: a NamedTuple of stacked arrays; fields that are no `[steps]` numbers
            (nested trees, vectors) are left out.

    Example:
        >>> from typing import NamedTuple
        >>> class Info(NamedTuple):
        ...     value: np.ndarray
        >>> last_metrics(Info(np.array([3.0, 2.0])))
        {'value': 2.0}
    """
    fields = infos._asdict() if hasattr(infos, "_asdict") else {}
    return {
        name: float(value[-1])
        for name, value in fields.items()
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.size
    }


_PROGRAMS: OrderedDict[Any, Any] = OrderedDict()
_KEPT = 16  # compiled programs


def _compiled_once(
    function: Callable[..., Any], state: Any, rest: Any
) -> Callable[..., Any]:
    """`jax.jit`, shared between functions that are the same program.

    By the text of the program, not by the identity of the function: a closure whose
    values have changed is another program, and a solver that is made anew for every
    stage is not.  The text is small, since data are arguments.
    """
    jitted = jax.jit(function, donate_argnums=0)
    lowered = jitted.lower(state, rest, np.int32(0))
    # Trees are no part of the text.
    trees = (lowered.in_tree, jax.tree.structure(lowered.out_info))
    key = (*trees, hashlib.sha256(lowered.as_text().encode()).digest())
    program = _PROGRAMS.setdefault(key, jitted)
    _PROGRAMS.move_to_end(key)
    while len(_PROGRAMS) > _KEPT:
        _PROGRAMS.popitem(last=False)
    return program


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into a flag, and lets the second one through."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals reach the main thread only
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
