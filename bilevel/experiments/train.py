"""The usual main loop: restore, run, log, save, show progress."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.experiments.progress import progress
from bilevel.experiments.run_folder import Run
from bilevel.problem import Batches, Info, Samples, Solver, State
from bilevel.run import Callback
from bilevel.run import run as run_solver


def train(
    run: Run,
    solver: Solver[State, Info],
    state: State,
    samples: Samples | Batches,
    *,
    num_steps: int,
    chunk_size: int = 10,
    metric: str | None = "value",
    callbacks: Sequence[Callback] = (),
) -> State:
    """Makes steps until there are `num_steps`, from where the run was.

    Every step is logged with the scalar fields of its info; after every chunk the state
    is saved if that is due, and at the end in any case. Neither the chunk size nor an
    interruption changes the result: the batch of a step depends on its number.

    Args:
      run: the folder.
      solver: an outer algorithm, from `bilevel.solvers`.
      state: from `solver.init`; where a new run starts, and a template for the others.
      samples: as for `bilevel.run`.
      num_steps: of the whole run; `state.step` counts them.
      chunk_size: steps between two looks of the host.
      metric: the field of the info that the best checkpoint is chosen by, lower is
        better; it is that of the state before the last step. None: no best one.
      callbacks: as for `bilevel.run`.

    Returns:
      The last state.

    Raises:
      KeyboardInterrupt: Ctrl-C, or a callback ended the run; the state is saved.
      FloatingPointError: the metric, the inner or the outer variable is not finite;
        the states that are saved are.

    Example:
      ```
      def main(config, run):
          state = solver.init(weights, penalties, jax.random.key(config.seed))
          state = experiments.train(run, solver, state, batches, num_steps=1000)
          run.finish({"penalties": state.outer})
      ```
    """
    restored = run.restore(state)
    state, done = (state, 0) if restored is None else restored
    first = state

    def look(state: Any, infos: Any) -> bool | None:
        step = int(state.step)
        rows = scalars(infos)
        count = len(next(iter(rows.values()), ()))
        for index in range(count):
            run.log(
                step - count + 1 + index,
                **{name: column[index] for name, column in rows.items()},
            )
        value = None if metric is None else rows[metric][-1]
        # The metric is that of the state before the last step.
        bad = [] if value is None or np.isfinite(value) else [f"{metric} = {value}"]
        bad += [] if _is_finite((state.inner, state.outer)) else ["the state"]
        if bad:
            raise FloatingPointError(
                f"not finite at step {step}: {', '.join(bad)}. The states that were"
                " saved are finite: start from one of them in another folder,"
                f" load_run({str(run.directory)!r}).state(template), with a smaller"
                " learning rate, say"
            )
        run.save(step, state, force=step >= num_steps, metric=value)

    with progress("training") as show:

        def shown(step: int, num: int, metrics: dict[str, float]) -> None:
            del num  # bilevel.run counts from where it started
            show(done + step, num_steps, metrics)

        state, _ = run_solver(
            solver,
            first,
            samples,
            num_steps=max(num_steps - done, 0),
            chunk_size=chunk_size,
            progress=shown,
            callbacks=[look, *callbacks],
        )
    run.save(int(state.step), state, force=True)
    if int(state.step) < num_steps:
        raise KeyboardInterrupt
    return state


@jax.jit
def _is_finite(tree: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in leaves]).all()


def scalars(infos: Any) -> dict[str, np.ndarray]:
    """Returns the fields of a chunk's infos that are one number a step, by name.

    Args:
      infos: a NamedTuple of stacked arrays.
    """
    return {
        name: value
        for name, value in infos._asdict().items()
        if isinstance(value, np.ndarray) and value.ndim == 1
    }
