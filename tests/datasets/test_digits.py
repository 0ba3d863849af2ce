"""scikit-learn's digits, split."""

import sys

import numpy as np
import pytest

from bilevel.datasets import load_digits


def rows(part):
    return {(*x.tolist(), int(y)) for x, y in zip(*part, strict=True)}


def test_shapes_types_and_range():
    train, test = load_digits()
    assert train.inputs.shape == (1437, 64)
    assert test.inputs.shape == (360, 64)
    for part in (train, test):
        assert part.inputs.dtype == np.float32
        assert part.labels.dtype == np.int32
        assert part.labels.shape == part.inputs.shape[:1]
        assert part.inputs.min() == 0.0
        assert part.inputs.max() == 1.0
        assert set(np.unique(part.labels)) == set(range(10))


def test_the_parts_are_a_partition_of_the_original():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = sklearn_datasets.load_digits(return_X_y=True)
    train, test = load_digits(seed=3)
    assert len(rows(train)) + len(rows(test)) == 1797  # no two examples are equal
    assert not rows(train) & rows(test)
    whole = {(*(x / 16).tolist(), int(y)) for x, y in zip(pixels, labels, strict=True)}
    assert rows(train) | rows(test) == whole


@pytest.mark.parametrize(("num_train", "num_test"), [(1437, 360), (500, 97), (20, 0)])
def test_stratified(num_train, num_test):
    available = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    train, test = load_digits(seed=1, num_train=num_train, num_test=num_test)
    for part, num in ((train, num_train), (test, num_test)):
        assert len(part.labels) == num
        counts = np.bincount(part.labels, minlength=10)
        assert np.abs(counts - available * num / 1797).max() < 2


def test_seed():
    first, again, other = (load_digits(seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    np.testing.assert_array_equal(first.test.labels, again.test.labels)
    assert (first.train.labels != other.train.labels).any()


def test_order_is_random():
    train, _ = load_digits()
    assert len(set(train.labels[:20].tolist())) > 5


def test_too_many():
    with pytest.raises(ValueError, match=r"ask for 1798 .* only 1797"):
        load_digits(num_train=1437, num_test=361)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel\[examples\]'"):
        load_digits()
