"""Images for the training programs, and what they say of accuracies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import datasets, iterate
from bilevel.datasets import Examples, Splits
from bilevel.experiments import Run


class Images(NamedTuple):
    """Images as the network wants them, and their labels."""

    inputs: jax.Array
    labels: jax.Array


class Data(NamedTuple):
    """The parts of a data set."""

    train: Images
    validation: Images
    test: Images


def load(config: Any, run: Run, *, squares: bool = False) -> Data:
    """The images of a configuration, `[n, pixels]`.

    Args:
        config: with dataset, seed, num_train, num_validation and inputs ("unit", in
            [0, 1], "signed", in [-1, 1], or "standard", less the mean of all pixels of
            the training images in use, in units of their standard deviation).
        run: with the folder of the data.
        squares: `[n, side, side, 1]`, for convolutions.
    """
    loaders = {
        "digits": lambda: datasets.load_digits(config.seed),
        "mnist": lambda: datasets.load_mnist(run.data_dir),
        "fashion_mnist": lambda: datasets.load_fashion_mnist(run.data_dir),
    }
    splits: Splits = loaders[config.dataset]()
    num_rest = len(splits.train.labels) - config.num_validation
    sizes = (config.num_train or num_rest, config.num_validation)
    train, validation = datasets.split(splits.train, sizes, config.seed)

    def ready(part: Examples) -> Images:
        inputs = part.inputs.astype(np.float32)
        if config.inputs == "signed":
            inputs = 2 * inputs - 1
        if config.inputs == "standard":
            mean, deviation = np.mean(train.inputs), np.std(train.inputs)
            inputs = (inputs - np.float32(mean)) / np.float32(deviation)
        if squares:
            side = round(inputs.shape[1] ** 0.5)
            inputs = inputs.reshape(len(inputs), side, side, 1)
        return Images(jnp.asarray(inputs), jnp.asarray(part.labels))

    return Data(ready(train), ready(validation), ready(splits.test))


def epoch(
    step: Callable[[Any, Images, jax.Array], tuple[Any, Any]],
    state: Any,
    train: Images,
    key: jax.Array,
    batch_size: int,
) -> tuple[Any, Any]:
    """One pass over the images in an order of its own, a scan over whole batches.

    Args:
        step: `(state, batch, index) -> (state, metrics)`.
        state: to begin with.
        train: `[n, ...]`; what is left of n by the batch size is left out.
        key: of the order.
        batch_size: of a step.

    Returns:
        The state, and the metrics' means.
    """
    order = jax.random.permutation(key, len(train.labels))

    def one(carry: tuple[Any, jax.Array]) -> tuple[tuple[Any, jax.Array], Any]:
        state, index = carry
        rows = jax.lax.dynamic_slice(order, (index * batch_size,), (batch_size,))
        state, metrics = step(state, jax.tree.map(lambda x: x[rows], train), index)
        return (state, index + 1), metrics

    first = (state, jnp.zeros((), jnp.int32))
    num_steps = len(train.labels) // batch_size
    (state, _), metrics = iterate(one, first, num_steps=num_steps, history=True)
    return state, jax.tree.map(jnp.mean, metrics)


def accuracies(apply: Any, params: Any, part: Images) -> np.ndarray:
    """The part of the examples whose largest output is the right one, `[num_seeds]`."""
    right: Any = 0
    for start in range(0, len(part.labels), 1000):
        rows = slice(start, start + 1000)
        outputs = apply(params, part.inputs[rows])
        right = right + jnp.sum(jnp.argmax(outputs, -1) == part.labels[rows], axis=-1)
    return np.atleast_1d(right) / max(len(part.labels), 1)


def spread_of(found: np.ndarray) -> str:
    """The mean of the seeds in %, of several with the standard deviation."""
    more = f" ± {100 * np.std(found, ddof=1):.2f}" if len(found) > 1 else ""
    return f"{100 * np.mean(found):.2f}{more}"


def told_of(name: str, found: np.ndarray) -> dict[str, float]:
    """The mean of the seeds; of several the standard deviation and each one, too."""
    told = {name: float(np.mean(found))}
    if len(found) > 1:
        told[f"{name}_sd"] = float(np.std(found, ddof=1))
        told |= {f"{name}_{number}": float(one) for number, one in enumerate(found)}
    return told
