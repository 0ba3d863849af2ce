"""Random draws that depend on the seed alone, not on the version of numpy.

numpy promises that a bit generator's raw stream never changes for a given seed, but
makes no such promise for `Generator.permutation` or `Generator.integers`. Splits and
label noise are part of an experiment's definition, so they are built on raw bits.
"""

import operator
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """Names of independent streams of one seed.

    Without them, splitting and corrupting the same data with the same seed would
    draw the same numbers twice and so correlate the two.
    """

    SPLIT = 0
    SPLIT_ORDER = 1
    NOISE_POSITIONS = 2
    NOISE_CLASSES = 3


def random_bits(num: int, seed: int, stream: Stream) -> NDArray[np.uint64]:
    """Draws `num` independent uniform 64-bit integers.

    Args:
        num: how many.
        seed: a non-negative integer.
        stream: which of the seed's independent streams.

    Returns:
        uint64 `[num]`, the same for the same arguments on every numpy version.

    Raises:
        TypeError: `seed` is not an integer.
        ValueError: `seed` is negative.

    Example:
        >>> random_bits(2, 0, Stream.SPLIT).shape
        (2,)
    """
    seed = operator.index(seed)
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}.")
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream),))
    return np.asarray(np.random.PCG64(sequence).random_raw(num), dtype=np.uint64)


def permutation(num: int, seed: int, stream: Stream) -> NDArray[np.int64]:
    """Returns a uniformly random order of `0 .. num - 1`, int64 `[num]`.

    Two of the 64-bit sort keys coincide with a probability of about `num**2 / 2**65`;
    the stable sort makes even that case deterministic. Cost: one sort.

    Example:
        >>> sorted(permutation(4, 0, Stream.SPLIT).tolist())
        [0, 1, 2, 3]
    """
    return np.argsort(random_bits(num, seed, stream), kind="stable").astype(np.int64)


def apportion(total: int, available: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shares `total` draws among classes in proportion to their sizes.

    The largest-remainder method in integers: class c gets the floor or the ceiling of
    `total * available[c] / sum(available)`, hence never more than `available[c]`.
    Equal remainders go to the lower class.

    Args:
        total: number of draws, at most `sum(available)`.
        available: `[num_classes]` sizes of the classes.

    Returns:
        int64 `[num_classes]`, which sums to `total`.

    Example:
        >>> apportion(4, np.array([3, 3, 2])).tolist()
        [2, 1, 1]
    """
    size = int(available.sum())
    if size == 0:
        return np.zeros_like(available)
    counts, remainders = np.divmod(total * available, size)
    missing = total - int(counts.sum())
    counts[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return counts
