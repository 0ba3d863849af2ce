"""The two containers of this package, and random disjoint subsets of examples."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bilevel.datasets.draws import Stream, apportion, permutation, random_bits


class Examples(NamedTuple):
    """Inputs and labels, one row per example; a pytree, so also a batch."""

    inputs: NDArray[np.float32]  # [n, d]
    labels: NDArray[Any]  # [n], int32 for classes, float64 for targets


class Splits(NamedTuple):
    """The training and the test part of a data set."""

    train: Examples
    test: Examples


def split(
    examples: Examples, sizes: Sequence[int], seed: int, *, stratified: bool = False
) -> tuple[Examples, ...]:
    """Draws disjoint random subsets, for instance inner and outer training data.

    The same arguments give the same bits on every machine and numpy version.

    Args:
        examples: `n` examples.
        sizes: number of examples of each subset; they may leave some examples out.
        seed: a non-negative integer.
        stratified: give every class the same share of each subset as of all the
            examples, up to rounding: the count of a class is within one of its exact
            share in the union of the subsets, and in each subset within one of its
            share of what the earlier ones left. Needs integer labels.

    Returns:
        One `Examples` per entry of `sizes`, in random order, dtypes kept. Copies.

    Raises:
        TypeError: a size or the seed is not an integer.
        ValueError: inputs and labels differ in length, a size is negative, the sizes
            ask for more than `n`, the seed is negative, or `stratified` and the
            labels are not integers.

    Cost: one sort of `n` integers (two if stratified) and one copy of what is returned.

    Example:
        >>> data = Examples(np.zeros((10, 2), np.float32), np.arange(10))
        >>> inner, outer = split(data, (6, 3), seed=0)
        >>> inner.inputs.shape, outer.labels.shape
        ((6, 2), (3,))
    """
    num = len(examples.labels)
    if len(examples.inputs) != num:
        raise ValueError(
            "split: inputs and labels must have the same length, got "
            f"{len(examples.inputs)} inputs and {num} labels."
        )
    sizes = _checked_sizes(sizes, num)
    if stratified:
        parts = _stratified_indices(np.asarray(examples.labels), sizes, seed)
    else:
        order = permutation(num, seed, Stream.SPLIT)
        parts = np.split(order, np.cumsum(sizes))[: len(sizes)]
    return tuple(Examples(examples.inputs[p], examples.labels[p]) for p in parts)


def _checked_sizes(sizes: Sequence[int], num: int) -> tuple[int, ...]:
    checked = tuple(operator.index(size) for size in sizes)
    if any(size < 0 for size in checked):
        raise ValueError(f"split: sizes must not be negative, got {checked}.")
    if sum(checked) > num:
        raise ValueError(
            f"split: sizes {checked} ask for {sum(checked)} examples, but there are "
            f"only {num}; reduce the sizes."
        )
    return checked


def _stratified_indices(
    labels: NDArray[Any], sizes: tuple[int, ...], seed: int
) -> list[NDArray[np.int64]]:
    """Returns disjoint index arrays whose classes are in proportion."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"split: stratified=True needs integer labels, got {labels.dtype}; "
            "convert the labels or pass stratified=False."
        )
    order = permutation(len(labels), seed, Stream.SPLIT)
    classes, available = np.unique(labels, return_counts=True)
    members = [order[labels[order] == c] for c in classes]
    # Taking the union's share of each class first leaves the last subset exactly
    # what it needs, so that no class is ever asked for more than it has.
    left = apportion(sum(sizes), available.astype(np.int64))
    taken = np.zeros_like(left)
    sort_keys = random_bits(len(labels), seed, Stream.SPLIT_ORDER)
    parts = []
    for size in sizes:
        counts = apportion(size, left)
        pieces = [m[t : t + c] for m, t, c in zip(members, taken, counts, strict=True)]
        part = np.concatenate([order[:0], *pieces])
        # The pieces lie class by class, which minibatches in order would not survive.
        parts.append(part[np.argsort(sort_keys[part], kind="stable")])
        left, taken = left - counts, taken + counts
    return parts
