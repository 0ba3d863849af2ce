"""Runs an outer algorithm: chunks of a compiled scan, driven from the host."""

import hashlib
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import closures
from bilevel.iteration import iterate_recorded
from bilevel.problem import Batches, Solver


class Progress(Protocol):
    """Called on the host after every chunk; shows, and changes nothing."""

    def __call__(self, step: int, num_steps: int, metrics: dict[str, float], /) -> None:
        """Shows `metrics` (of the last step) after `step` of `num_steps` steps."""


Callback = Callable[[Any, Any], bool | None]
"""`callback(state, infos) -> stop`: called on the host after every chunk, with the
state and the chunk's infos (stacked, NumPy); a true value ends the run."""


def run(
    solver: Solver,
    state: Any,
    sample: Callable[[jax.Array], Batches] | Batches,
    *,
    num_steps: int,
    chunk_size: int = 10,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Any, Any]:
    """Makes `num_steps` updates of `state`, and returns it with the history.

    The updates are compiled once, as a loop of up to `chunk_size` steps (another run of
    the same program, with other values, finds it compiled); between chunks the host
    shows progress, calls callbacks and notices Ctrl-C, which ends the run with the
    state reached (a second Ctrl-C raises `KeyboardInterrupt`).  The batch of step t is
    `sample(fold_in(state.key, t))`, t counted over all runs, so that neither the chunk
    size nor an interruption changes the result.  Data that `sample` and the objectives
    close over is passed to the compiled program as arguments, not copied into it.

    Args:
        solver: an outer algorithm, from `bilevel.solvers`.
        state: from `solver.init`, or of an earlier run; it stays valid (a copy is
            donated).
        sample: `key -> Batches`, traceable; or one `Batches` for all steps.
        num_steps: how many updates, on top of those `state` has seen.
        chunk_size: updates between two looks of the host.
        progress: see `Progress`; `bilevel.experiments.progress` has one.
        callbacks: see `Callback`.

    Returns:
        The last state, and the infos of all steps stacked on a first axis `[steps]`, as
        NumPy arrays.

    Raises:
        ValueError: `num_steps` or `chunk_size` out of range.

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
    if num_steps < 0 or chunk_size < 1:
        raise ValueError(
            "run: num_steps must be >= 0 and chunk_size >= 1, got "
            f"{num_steps} and {chunk_size}."
        )

    # Arguments, so that other values are no other program.
    is_one = isinstance(sample, Batches)
    batches = jax.tree.map(jnp.asarray, sample) if is_one else None

    def step(carry: Any, batches: Any) -> tuple[Any, Any]:
        if not isinstance(sample, Batches):
            batches = sample(jax.random.fold_in(carry.key, carry.step))
        return solver.update(carry, batches)

    # Donation would delete the caller's buffers.
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    if num_steps == 0:
        shapes = jax.eval_shape(step, state, batches)[1]
        empty = jax.tree.map(lambda s: np.zeros((0, *s.shape), s.dtype), shapes)
        return state, empty
    hoisted, constants = closures.hoist(step, state, batches)
    capacity = min(chunk_size, num_steps)

    def many(carry: Any, rest: Any, length: jax.Array) -> tuple[Any, Any]:
        constants, batches = rest
        one = lambda c: hoisted(constants, c, batches)
        return iterate_recorded(one, carry, num_steps=length, capacity=capacity)

    rest = (constants, batches)
    compiled = _compiled_once(many, state, rest)
    infos: list[Any] = []
    done = 0
    with _interrupts() as interrupted:
        while done < num_steps and not interrupted.is_set():
            length = min(chunk_size, num_steps - done)
            state, info = compiled(state, rest, np.int32(length))
            info = _first(info, length)
            infos.append(info)
            done += length
            if progress is not None:
                progress(done, num_steps, last_metrics(info))
            if any([callback(state, info) for callback in callbacks]):
                break
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *infos)


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
