"""Linear classifiers for `data_cleaning.py`, trained on weighted examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import bilevel
from bilevel import inner_solvers
from examples.data_cleaning_task import NUM_CLASSES, Config, Task


class Models(NamedTuple):
    """Linear classifiers, side by side so that one product serves all."""

    kernel: jax.Array  # [models * classes, d]
    bias: jax.Array  # [models * classes]


class Weighted(NamedTuple):
    """Examples with a weight for each of them in each model."""

    inputs: jax.Array  # [n, d]
    targets: jax.Array  # [n, classes], one-hot
    weights: jax.Array  # [n, models]


class Classifier(NamedTuple):
    """A model with the penalty chosen for it."""

    models: Models  # one
    penalty: float
    validation_loss: float  # cross-validated


def zeros(num_models: int, num_features: int) -> Models:
    """Models to start from."""
    size = num_models * NUM_CLASSES
    return Models(jnp.zeros((size, num_features)), jnp.zeros(size))


def weighted(task: Task, weights: np.ndarray | jax.Array) -> Weighted:
    """All examples of the task, with weights `[n, models]`."""
    targets = jax.nn.one_hot(task.given, NUM_CLASSES)
    return Weighted(
        jnp.asarray(task.inputs), targets, jnp.asarray(weights, jnp.float32)
    )


def scores(models: Models, inputs: jax.Array) -> jax.Array:
    """Logits `[n, models, classes]`."""
    flat = jnp.einsum("nd,kd->nk", inputs, models.kernel) + models.bias
    return flat.reshape(len(inputs), -1, NUM_CLASSES)


def losses(models: Models, batch: Weighted) -> jax.Array:
    """Cross-entropies `[n, models]`, not weighted."""
    logits = scores(models, batch.inputs)
    own = jnp.einsum("nmk,nk->nm", logits, batch.targets)
    return jax.nn.logsumexp(logits, axis=-1) - own


def mean_losses(models: Models, batch: Weighted) -> jax.Array:
    """`[models]`: weighted means of the cross-entropy."""
    return (batch.weights * losses(models, batch)).sum(0) / batch.weights.sum(0)


def training_loss(models: Models, penalty: ArrayLike, batch: Weighted) -> jax.Array:
    """The sum over models, each of which is therefore trained on its own."""
    return mean_losses(models, batch).sum() + penalty / 2 * jnp.sum(models.kernel**2)


fit = jax.jit(bilevel.argmin(training_loss, inner_solvers.newton(rtol=3e-3)))
losses_of = jax.jit(mean_losses)
scores_of = jax.jit(scores)


def train_tuned(cfg: Config, task: Task, weights: np.ndarray) -> Classifier:
    """Trains on weighted examples; the penalty is chosen by cross-validation.

    The last model sees every example, each of the others all but one part of the
    validation set.  From the largest penalty down, until the loss on the parts left
    out rises.

    Args:
        cfg: the configuration.
        task: the task.
        weights: `[n]`.
    """
    is_fitted = weights[task.is_validation].any()
    left_out = task.folds(cfg.num_folds if is_fitted else 1)
    masks = np.concatenate([~left_out, np.ones((len(left_out), 1))], axis=1)
    batch = weighted(task, weights[:, None] * masks)
    # A last column that is never used: as many as there are models.
    test = weighted(task, np.concatenate([left_out, left_out[:, :1]], axis=1))
    models = zeros(left_out.shape[1] + 1, task.inputs.shape[1])
    best = None
    for penalty in sorted(cfg.penalties, reverse=True):
        models, _ = fit(models, penalty, batch)
        loss = float(losses_of(models, test)[:-1].mean())
        if best is not None and loss > best.validation_loss:
            break
        last = Models(models.kernel[-NUM_CLASSES:], models.bias[-NUM_CLASSES:])
        best = Classifier(last, penalty, loss)
    assert best is not None
    return best


def margins(models: Models, task: Task) -> np.ndarray:
    """`[num_train]`: the score of the given label minus the best other one."""
    every = np.asarray(scores_of(models, task.inputs[: task.num_train]))[:, 0]
    own = task.given[: task.num_train, None] == np.arange(NUM_CLASSES)
    return every[own] - np.where(own, -np.inf, every).max(axis=1)


def test_accuracy(models: Models, task: Task) -> float:
    """The share of test images that one model classifies correctly."""
    predicted = np.asarray(scores_of(models, task.test.inputs))[:, 0].argmax(axis=1)
    return float((predicted == task.test.labels).mean())
