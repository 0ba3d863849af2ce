"""Raw random bits, permutations and proportional shares."""

import numpy as np
import pytest

from bilevel.datasets.draws import Stream, apportion, permutation, random_bits


def test_bits_are_those_of_numpys_guaranteed_stream():
    # Values of numpy 2.4, and the same in 2.0: numpy guarantees this stream for ever.
    assert random_bits(3, 0, Stream.SPLIT).tolist() == [
        17394127715520444142,
        5835390491061343638,
        13324868866364183597,
    ]


def test_streams_and_seeds_differ():
    drawn = [tuple(random_bits(4, seed, s)) for seed in (0, 1, 2**70) for s in Stream]
    assert len(set(drawn)) == 3 * len(Stream)


def test_prefix_property():
    long, short = random_bits(10, 3, Stream.SPLIT), random_bits(4, 3, Stream.SPLIT)
    np.testing.assert_array_equal(long[:4], short)


@pytest.mark.parametrize("seed", [-1, -(2**70)])
def test_negative_seed(seed):
    with pytest.raises(ValueError, match=f"non-negative integer, got {seed}"):
        random_bits(1, seed, Stream.SPLIT)


@pytest.mark.parametrize("seed", [0.0, None, "0", [1]])
def test_seed_must_be_an_integer(seed):
    # numpy would take None for "seed me from the clock".
    with pytest.raises(TypeError):
        random_bits(1, seed, Stream.SPLIT)


@pytest.mark.parametrize("num", [0, 1, 2, 1000])
def test_permutation(num):
    order = permutation(num, 0, Stream.SPLIT)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num))


@pytest.mark.parametrize("available", [[1], [5, 0, 3], [7, 1, 1, 1], [3, 3, 3], [0, 2]])
def test_apportion_every_total(available):
    available = np.array(available, np.int64)
    for total in range(available.sum() + 1):
        counts = apportion(total, available)
        assert counts.sum() == total
        share = total * available / available.sum()
        assert (counts >= np.floor(share)).all()
        assert (counts <= np.ceil(share)).all()
        assert (counts <= available).all()


def test_apportion_nothing():
    assert apportion(0, np.zeros(3, np.int64)).tolist() == [0, 0, 0]
    assert apportion(0, np.zeros(0, np.int64)).tolist() == []
