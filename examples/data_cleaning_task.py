"""The task of `data_cleaning.py`: its configuration, and images with wrong labels."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from bilevel import datasets
from bilevel.experiments import config

NUM_CLASSES = 10
_DIGIT_PAIRS = {1: 7, 7: 1, 3: 5, 5: 3, 4: 9, 9: 4}
# T-shirt and shirt, pullover and coat, sneaker and ankle boot.
_FASHION_PAIRS = {0: 6, 6: 0, 2: 4, 4: 2, 7: 9, 9: 7}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cleaning:
    """How the example weights are learned."""

    start_scale: float = config.field(
        3.0,
        help="start at this times the margin of each given label; 0: all weights 1/2",
        minimum=0.0,
    )
    learning_rate: float = config.field(0.1, help="of Adam on the logits", minimum=0.0)
    num_steps: int = config.field(10, help="outer steps", minimum=1)
    chunk_size: int = config.field(2, help="outer steps between two looks", minimum=1)
    num_folds: int = config.field(
        3, help="parts of the validation set; a model trains on all but one", minimum=2
    )
    penalties: tuple[float, ...] = config.field(
        (0.1, 0.03), help="L2 penalties to choose from", minimum=0.0
    )
    rule: Literal["implicit", "nudged"] = config.field(
        "implicit", help="how derivatives are pulled back through the inner argmin"
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A data-cleaning run."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    noise: Literal["symmetric", "swap"] = config.field(
        "symmetric", help="wrong labels: any other class, or the most similar one"
    )
    noise_fraction: float = config.field(
        0.5, help="of the labels (swap: of the classes concerned)", maximum=1.0
    )
    num_train: int = config.field(1000, help="examples with noisy labels", minimum=10)
    num_validation: int = config.field(200, help="examples with clean ones", minimum=10)
    seed: int = config.field(0, help="of the split and of the noise", minimum=0)
    penalties: tuple[float, ...] = config.field(
        (0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 3e-5),
        help="L2 penalties to choose from",
        minimum=0.0,
    )
    num_folds: int = config.field(
        5, help="of the cross-validation that chooses the penalties", minimum=2
    )
    cleaning: Cleaning = Cleaning()


class Task(NamedTuple):
    """Examples with labels; the first `num_train` labels are noisy, the others clean.

    Attributes:
        inputs: float32 `[n, d]`, training examples first, then validation examples;
            the mean training image is subtracted.
        given: int32 `[n]`, the labels given.
        true: int32 `[n]`.
        test: examples that nothing is chosen on.
        mean: float32 `[d]`, the image that was subtracted.
        num_train: how many labels are noisy.
    """

    inputs: np.ndarray
    given: np.ndarray
    true: np.ndarray
    test: datasets.Examples
    mean: np.ndarray
    num_train: int

    @property
    def is_wrong(self) -> np.ndarray:
        """What a cleaner should find, bool `[num_train]`."""
        return (self.given != self.true)[: self.num_train]

    @property
    def is_held_out(self) -> np.ndarray:
        """The last fifth of the validation set, bool `[n]`."""
        num = len(self.given)
        return np.arange(num) >= num - (num - self.num_train) // 5

    @property
    def is_validation(self) -> np.ndarray:
        """Whether an example has a clean label, bool `[n]`."""
        return np.arange(len(self.given)) >= self.num_train

    def folds(self, num_folds: int) -> np.ndarray:
        """Which validation example is in which part, bool `[n, num_folds]`."""
        part = np.arange(len(self.given)) % num_folds
        return (part[:, None] == np.arange(num_folds)) & self.is_validation[:, None]

    def weights(self, training: np.ndarray | float, validation: float) -> np.ndarray:
        """`[n]`, from those of the training and of the validation examples."""
        weights = np.full(len(self.given), validation, np.float32)
        weights[: self.num_train] = training
        return weights


def load(cfg: Config, data_dir: Path | None) -> Task:
    """Loads the images, splits them and spoils the training labels."""
    sizes = (cfg.num_train, cfg.num_validation)
    if cfg.dataset == "digits":
        rest = 1797 - sum(sizes)
        full = datasets.load_digits(cfg.seed, num_train=sum(sizes), num_test=rest)
    else:
        full = datasets.load_mnist(data_dir, cfg.dataset)
    train, clean = datasets.split(full.train, sizes, cfg.seed, stratified=True)
    if cfg.noise == "symmetric":
        spoiled = datasets.symmetric_label_noise(
            train.labels, cfg.noise_fraction, NUM_CLASSES, cfg.seed
        )
    else:
        pairs = _FASHION_PAIRS if cfg.dataset == "fashion_mnist" else _DIGIT_PAIRS
        spoiled = datasets.class_swap_noise(
            train.labels, cfg.noise_fraction, pairs, cfg.seed
        )
    mean = train.inputs.mean(axis=0)
    return Task(
        inputs=np.concatenate([train.inputs, clean.inputs]) - mean,
        given=np.concatenate([spoiled.noisy, clean.labels]),
        true=np.concatenate([train.labels, clean.labels]),
        test=full.test._replace(inputs=full.test.inputs - mean),
        mean=mean,
        num_train=cfg.num_train,
    )
