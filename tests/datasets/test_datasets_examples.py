"""Random disjoint subsets: bits, disjointness, proportions, errors."""

import numpy as np
import pytest

from bilevel.datasets import Examples, split


def numbered(num, num_classes=3):
    """Examples whose only feature is their number."""
    return Examples(
        inputs=np.arange(num, dtype=np.float32)[:, None],
        labels=(np.arange(num) ** 2 % num_classes).astype(np.int32),
    )


def numbers(part):
    return part.inputs[:, 0].astype(int).tolist()


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("sizes", [(), (0,), (100,), (60, 40), (10, 0, 30), (1,) * 100])
def test_disjoint_subsets_of_the_sizes_asked(sizes, stratified):
    data = numbered(100)
    parts = split(data, sizes, seed=0, stratified=stratified)
    assert tuple(len(part.labels) for part in parts) == sizes
    drawn = [number for part in parts for number in numbers(part)]
    assert len(set(drawn)) == len(drawn) == sum(sizes)
    for part in parts:
        assert part.inputs.dtype == np.float32
        assert part.labels.dtype == np.int32
        np.testing.assert_array_equal(part.labels, data.labels[numbers(part)])


@pytest.mark.parametrize("stratified", [False, True])
def test_same_seed_same_bits_other_seed_other_bits(stratified):
    data = numbered(200)
    first, again, other = (
        split(data, (90, 70), seed, stratified=stratified) for seed in (7, 7, 8)
    )
    for a, b, c in zip(first, again, other, strict=True):
        assert a.inputs.tobytes() == b.inputs.tobytes()
        assert a.labels.tobytes() == b.labels.tobytes()
        assert numbers(a) != numbers(c)


def test_bits_are_fixed_for_ever():
    # Values of this code at its first release: a change would alter experiments.
    inner, outer = split(numbered(10), (4, 3), seed=0)
    assert (numbers(inner), numbers(outer)) == ([6, 3, 8, 1], [4, 5, 9])
    inner, outer = split(numbered(10), (4, 3), seed=0, stratified=True)
    assert (numbers(inner), numbers(outer)) == ([1, 3, 8, 6], [5, 4, 9])


def test_subsets_are_copies():
    data = numbered(5)
    (part,) = split(data, (5,), seed=0)
    part.inputs[:] = -1
    part.labels[:] = -1
    np.testing.assert_array_equal(data.inputs, numbered(5).inputs)
    np.testing.assert_array_equal(data.labels, numbered(5).labels)


def test_uniform():
    # Over 2000 seeds each of 8 examples falls into a half 1000 times on average,
    # standard deviation 22; the seeds are fixed, so 5 sigma never fails by chance.
    counts = np.zeros(8)
    for seed in range(2000):
        (half,) = split(numbered(8), (4,), seed)
        counts[numbers(half)] += 1
    assert np.abs(counts - 1000).max() < 112


@pytest.mark.parametrize("sizes", [(50, 30, 17), (97,), (3, 94), (31, 31, 31)])
def test_stratified_proportions(sizes):
    labels = np.repeat([4, 1, 7, 2], [60, 25, 11, 1]).astype(np.int32)
    data = Examples(np.zeros((97, 1), np.float32), labels)
    parts = split(data, sizes, seed=2, stratified=True)
    for part in parts:
        for label, count in ((4, 60), (1, 25), (7, 11), (2, 1)):
            share = count * len(part.labels) / 97
            # Less than 1 for the union and for each draw from what is left of it.
            assert abs(np.count_nonzero(part.labels == label) - share) < 2
    union = np.concatenate([part.labels for part in parts])
    for label, count in ((4, 60), (1, 25), (7, 11), (2, 1)):
        share = count * sum(sizes) / 97
        assert abs(np.count_nonzero(union == label) - share) < 1


def test_stratified_subsets_are_in_independent_random_order():
    labels = np.repeat(np.arange(10), 200).astype(np.int32)
    data = Examples(np.zeros((2000, 1), np.float32), labels)
    first, second = split(data, (1000, 1000), seed=0, stratified=True)
    for part in (first, second):
        assert set(part.labels[:200].tolist()) == set(range(10))
    # Independent orders agree at 10 % of the places, standard deviation 1 %.
    assert abs(np.mean(first.labels == second.labels) - 0.1) < 0.05


def test_too_many():
    with pytest.raises(ValueError, match=r"\(6, 5\) ask for 11 examples.*only 10"):
        split(numbered(10), (6, 5), seed=0)


def test_negative_size():
    with pytest.raises(ValueError, match=r"must not be negative, got \(11, -1\)"):
        split(numbered(10), (11, -1), seed=0)


def test_fractions_are_not_sizes():
    with pytest.raises(TypeError):
        split(numbered(10), (0.8, 0.2), seed=0)  # type: ignore[arg-type]


def test_unequal_lengths():
    data = numbered(10)._replace(labels=np.zeros(9, np.int32))
    with pytest.raises(ValueError, match="10 inputs and 9 labels"):
        split(data, (3,), seed=0)


def test_stratified_needs_classes():
    data = numbered(10)._replace(labels=np.zeros(10))
    with pytest.raises(ValueError, match="integer labels, got float64"):
        split(data, (3,), seed=0, stratified=True)


def test_negative_seed():
    with pytest.raises(ValueError, match="non-negative integer, got -1"):
        split(numbered(10), (3,), seed=-1)
