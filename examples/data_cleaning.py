"""Data cleaning: half of the labels are wrong; a few clean examples tell which.

    python examples/data_cleaning.py --config=configs/data_cleaning_digits.py

Training example i has the weight sigmoid(x_i).  Linear models are trained on the
weighted training examples and the validation set without its k-th part,

    w_k*(x) = argmin over w of the mean weighted cross-entropy + penalty / 2 |w|^2,

and x is moved against the gradient of their loss on the parts left out: a cross-
validation loss, differentiated through its argmins.  Labels whose weight ends below 1/2
are called wrong and dropped; the result is a model trained on the rest and the
validation set.

x starts at the margins of a model trained on everything, wrong labels and all, where
the baseline "filter" stops.  A few steps from there suffice; many would fit the
validation set rather than find wrong labels.

What is chosen on what: the L2 penalty of every row of the table by cross-validation on
the validation set (rows that do not train on it: by the loss there).  The penalty under
which the weights are learned: by trial runs that do not see the last fifth of the
validation set, on the loss there.  The number of steps is fixed; it was chosen on other
splits of the training images.  Test data choose nothing in this program; its authors
saw test figures of seeds 0 to 4 while they wrote it, and README says which of its
figures come from seeds 10 to 14, run once and afterwards.  The labels that "filter" and
"bilevel" keep were found with the whole validation set, so that their cross-validated
losses are somewhat optimistic; only test accuracies compare rows.

"oracle" trains on the labels that are correct, and like the other rows on the
validation set.  A resumed run trains its baselines again, which is quick, and goes on
with the weights.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from bilevel import hypergradients, inner_solvers, linear_solvers, solvers
from bilevel.experiments import Run, progress
from bilevel.hypergradients import Hypergradient
from bilevel.inner_solvers import InnerSolver
from bilevel.solvers import TwoLoopState as State
from examples import data_cleaning_report as report
from examples.data_cleaning_models import (
    Models,
    Weighted,
    fit,
    losses,
    losses_of,
    margins,
    mean_losses,
    test_accuracy,
    train_tuned,
    weighted,
    zeros,
)
from examples.data_cleaning_task import Config, Task, load


def method(rule: str) -> tuple[InnerSolver, Hypergradient]:
    """The inner solver, and the rule that pulls derivatives through its argmin."""
    if rule == "nudged":
        return inner_solvers.newton(), hypergradients.nudged(0.1)
    # Only the signs of the outer variables matter, and Adam forgets the scale of the
    # gradient: each outer step needs a direction, and the next solve starts here.
    adjoint = linear_solvers.cg(rtol=0.03)
    return inner_solvers.newton(rtol=0.01), hypergradients.implicit(adjoint)


class Cleaning(NamedTuple):
    """The batch of the inner objective."""

    examples: Weighted  # weight 1 where a model may train on an example, else 0
    penalty: float


def inner_objective(models: Models, outer: jax.Array, batch: Cleaning) -> jax.Array:
    """Means of weighted losses, plus the penalty."""
    examples, penalty = batch
    ones = jnp.ones(len(examples.inputs) - len(outer))
    learned = jnp.concatenate([jax.nn.sigmoid(outer), ones])[:, None]
    # Divided by the number of examples, not by the sum of weights: to drop an example
    # costs weight against the penalty, so that correct labels are not dropped idly.
    weighted_losses = learned * examples.weights * losses(models, examples)
    means = weighted_losses.sum(0) / examples.weights.sum(0)
    return means.sum() + penalty / 2 * jnp.sum(models.kernel**2)


def outer_objective(models: Models, outer: jax.Array, batch: Weighted) -> jax.Array:
    """The cross-validation loss."""
    del outer
    return mean_losses(models, batch).mean()


def stage_batches(
    cfg: Config, task: Task, penalty: float, used: np.ndarray
) -> bilevel.Batches:
    """Folds of the validation examples that are used (bool `[n]`)."""
    left_out = task.folds(cfg.cleaning.num_folds) & used[:, None]
    inside = (used | ~task.is_validation)[:, None] & ~left_out
    return bilevel.Batches(
        inner=Cleaning(weighted(task, inside), penalty), outer=weighted(task, left_out)
    )


def quality(
    cfg: Config, task: Task, logits: np.ndarray, used: np.ndarray, penalty: float
) -> report.Quality:
    """Trains on what the weights keep and the validation examples that are used."""
    kept = task.weights(logits > 0, 1) * (used | ~task.is_validation)
    start = zeros(1, len(task.mean))
    model, _ = fit(start, penalty, weighted(task, kept[:, None]))
    unseen = task.is_validation & ~used
    loss = float(losses_of(model, weighted(task, unseen[:, None]))[0])
    found = report.detection(logits <= 0, task.is_wrong)
    return report.Quality(loss, test_accuracy(model, task), found.f1)


def learn_weights(
    cfg: Config, task: Task, start: np.ndarray, last_penalty: float, run: Run
) -> np.ndarray | None:
    """Learns the logits of the weights, first in trials, then with the best penalty.

    A trial, under one penalty, does not see the last fifth of the validation set.

    Args:
        cfg: the configuration.
        task: the task.
        start: `[num_train]`, where the logits start.
        last_penalty: of the models that show what the weights are good for.
        run: where to save and log.

    Returns:
        The logits, or None if interrupted.
    """
    clean = cfg.cleaning
    num_trials, num_steps = len(clean.penalties), clean.num_steps
    last_step = (num_trials + 1) * num_steps
    solver = solvers.two_loop(
        bilevel.Problem(inner_objective, outer_objective),
        *method(clean.rule),
        outer_optimizer=optax.adam(clean.learning_rate),
    )
    models = zeros(clean.num_folds, len(task.mean))
    fresh = solver.init(models, jnp.asarray(start), jax.random.key(cfg.seed))
    state, done = run.restore(fresh) or (fresh, 0)

    def stage(number: int, state: State, show: Callable[..., None]) -> State:
        is_trial = number < num_trials
        chosen = number if is_trial else report.best_trial(cfg, run.metrics())
        penalty = clean.penalties[chosen]
        used = task.is_validation & ~(task.is_held_out & is_trial)

        def look(state: State, infos: solvers.TwoLoopInfo) -> None:
            step = number * num_steps + int(state.step)
            now = quality(cfg, task, np.asarray(state.outer), used, last_penalty)
            value = float(infos.value[-1])
            losses = {"penalty": penalty, "outer loss": value}
            held_out = {"held-out loss": now.held_out_loss} if is_trial else {}
            show(step, last_step, losses | held_out)
            name = report.stage_name(cfg, number)
            run.log(step, stage=name, outer_loss=value, **now._asdict())
            run.save(step, state, force=step == last_step)

        return bilevel.run(
            solver,
            state,
            stage_batches(cfg, task, penalty, used),
            num_steps=num_steps - int(state.step),
            chunk_size=clean.chunk_size,
            callbacks=[look],
        )[0]

    with progress("learning the weights") as show:
        for number in range(done // num_steps, num_trials + 1):
            state = stage(number, fresh if done <= number * num_steps else state, show)
            if int(state.step) < num_steps:
                return None
    return np.asarray(state.outer)


def main(cfg: Config, run: Run) -> None:
    """Compares the table's ways to train, and writes table, figures and summary."""
    began = time.monotonic()
    task = load(cfg, run.data_dir)
    run.record_data(task=task._asdict(), split_seed=cfg.seed)
    is_wrong = task.is_wrong
    rows: dict[str, report.Row] = {}

    def add(name: str, weights: np.ndarray, called: np.ndarray | None = None) -> Models:
        found = None if called is None else report.detection(called, is_wrong)
        one = train_tuned(cfg, task, weights)
        accuracy = test_accuracy(one.models, task)
        rows[name] = report.Row(one.penalty, one.validation_loss, accuracy, found)
        print(f"{name}: validation loss {one.validation_loss:.3f}", flush=True)
        return one.models

    add("noisy labels", task.weights(1, 0))
    add("validation set only", task.weights(0, 1))
    both = add("noisy labels + validation set", task.weights(1, 1))
    margin = margins(both, task)
    add("filter", task.weights(margin > 0, 1), margin <= 0)
    start = cfg.cleaning.start_scale * margin
    logits = learn_weights(cfg, task, start, rows["filter"].penalty, run)
    if logits is None:
        return
    add("bilevel", task.weights(logits > 0, 1), logits <= 0)
    add("oracle: correct labels only", task.weights(~is_wrong, 1))

    print(report.table(rows))
    report.weights(logits, is_wrong, run.path("figures/weights.png"))
    report.suspects(task, logits, run.path("figures/suspects.png"))
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s; figures in {run.directory / 'figures'}")
    run.finish({"seconds": seconds, "rows": report.as_dict(rows)})


if __name__ == "__main__":
    bilevel.launch(main)
