"""Wrong labels, put in on purpose: the test bed of data cleaning."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bilevel.datasets.draws import Stream, apportion, permutation, random_bits


class NoisyLabels(NamedTuple):
    """Labels of which some are wrong, and which ones."""

    noisy: NDArray[Any]  # [n], dtype of the labels given
    is_wrong: NDArray[np.bool_]  # [n], True exactly where noisy differs


def symmetric_label_noise(
    labels: NDArray[Any], fraction: float, num_classes: int, seed: int
) -> NoisyLabels:
    """Replaces a fraction of the labels by other classes, all equally likely.

    Exactly `round(fraction * n)` labels, chosen uniformly, get one of the
    `num_classes - 1` classes that are not their own, also chosen uniformly. (Some
    papers draw from all classes, which leaves `1 / num_classes` of them correct.)

    Args:
        labels: integers `[n]` in `0 .. num_classes - 1`; not changed.
        fraction: in [0, 1].
        num_classes: at least 2.
        seed: a non-negative integer; the same seed gives the same bits.

    Returns:
        The noisy labels, dtype kept, and a mask that is True where they are wrong.

    Raises:
        TypeError: `num_classes` or the seed is not an integer.
        ValueError: an argument is out of its range, or labels are no integer vector.

    Cost: one sort of `n` integers.

    References:
        L. Franceschi et al., Forward and reverse gradient-based hyperparameter
        optimization, arXiv:1703.01785, section 5.1 (data hyper-cleaning).

    Example:
        >>> result = symmetric_label_noise(np.zeros(10, np.int32), 0.3, 4, seed=0)
        >>> int(result.is_wrong.sum()), bool((result.noisy[result.is_wrong] > 0).all())
        (3, True)
    """
    labels = _checked_labels(labels)
    num_wrong = _num_wrong(fraction, len(labels))
    if operator.index(num_classes) < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels must be from 0 to num_classes - 1 = {num_classes - 1}, got values "
            f"from {labels.min()} to {labels.max()}."
        )
    _check_fits(num_classes - 1, labels)
    order = permutation(len(labels), seed, Stream.NOISE_POSITIONS)
    wrong = np.sort(order[:num_wrong])
    # A step of 1 .. num_classes - 1 around the circle of classes never comes back to
    # the start. The bias of the modulo is below num_classes / 2**64.
    bits = random_bits(len(labels), seed, Stream.NOISE_CLASSES)[wrong]
    steps = 1 + (bits % np.uint64(num_classes - 1)).astype(np.int64)
    replacements = (labels[wrong].astype(np.int64) + steps) % num_classes
    return _replace(labels, wrong, replacements)


def class_swap_noise(
    labels: NDArray[Any], fraction: float, pairs: Mapping[int, int], seed: int
) -> NoisyLabels:
    """Gives a fraction of the examples of some classes a similar class's label.

    Exactly `round(fraction * m)` of the `m` examples whose class is a key of `pairs`
    get the partner's label, shared among the classes in proportion (within one).

    Args:
        labels: integers `[n]`; not changed.
        fraction: in [0, 1].
        pairs: class -> the class it is mistaken for, e.g. `{4: 9, 9: 4, 7: 1}`. It
            need not be symmetric. Every class in it must occur in the labels.
        seed: a non-negative integer; the same seed gives the same bits.

    Returns:
        The noisy labels, dtype kept, and a mask that is True where they are wrong.

    Raises:
        TypeError: a class or the seed is not an integer.
        ValueError: an argument is out of its range, labels are no integer vector,
            `pairs` is empty, maps a class to itself, or names a class that does not
            occur.

    Cost: one sort of `n` integers and one pass per class in `pairs`.

    References:
        G. Patrini et al., Making deep neural networks robust to label noise: a loss
        correction approach, arXiv:1609.03683 (asymmetric noise).

    Example:
        >>> labels = np.array([4, 4, 9, 9, 1, 1], np.int32)
        >>> class_swap_noise(labels, 1.0, {4: 9, 9: 4}, seed=0).noisy.tolist()
        [9, 9, 4, 4, 1, 1]
    """
    labels = _checked_labels(labels)
    pairs = _checked_pairs(pairs, labels)
    order = permutation(len(labels), seed, Stream.NOISE_POSITIONS)
    # Sorted, so that the order in which the mapping was written does not matter.
    sources = sorted(pairs)
    members = [order[labels[order] == source] for source in sources]
    available = np.array([len(m) for m in members], np.int64)
    counts = apportion(_num_wrong(fraction, int(available.sum())), available)
    wrong = np.concatenate([m[:c] for m, c in zip(members, counts, strict=True)])
    replacements = np.repeat([pairs[source] for source in sources], counts)
    return _replace(labels, wrong, replacements)


def _replace(
    labels: NDArray[Any], wrong: NDArray[np.int64], replacements: NDArray[Any]
) -> NoisyLabels:
    noisy = labels.copy()
    noisy[wrong] = replacements
    is_wrong = np.zeros(len(labels), np.bool_)
    is_wrong[wrong] = True
    return NoisyLabels(noisy=noisy, is_wrong=is_wrong)


def _checked_labels(labels: NDArray[Any]) -> NDArray[Any]:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "labels must be a vector of integers, got "
            f"{labels.dtype} {list(labels.shape)}."
        )
    return labels


def _num_wrong(fraction: float, num: int) -> int:
    if not 0 <= fraction <= 1:  # also catches NaN
        raise ValueError(f"fraction must be in [0, 1], got {fraction}.")
    return round(float(fraction) * num)


def _check_fits(largest: int, labels: NDArray[Any]) -> None:
    if largest > np.iinfo(labels.dtype).max:
        raise ValueError(
            f"labels of type {labels.dtype} cannot hold class {largest}; convert them "
            "to int32."
        )


def _checked_pairs(pairs: Mapping[int, int], labels: NDArray[Any]) -> dict[int, int]:
    checked = {operator.index(a): operator.index(b) for a, b in pairs.items()}
    if not checked:
        raise ValueError("pairs must map at least one class to another, got none.")
    same = sorted(a for a, b in checked.items() if a == b)
    if same:
        raise ValueError(
            f"pairs must map a class to another one, got {same} mapped to themselves."
        )
    present = set(np.unique(labels).tolist())
    absent = sorted({*checked, *checked.values()} - present)
    if absent:
        raise ValueError(
            f"every class in pairs must occur in labels, got {absent}, which do not; "
            "correct the mapping or leave them out."
        )
    return checked
