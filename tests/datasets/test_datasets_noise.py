"""Wrong labels: exact counts, never the true class, uniform over the others."""

import numpy as np
import pytest

from bilevel.datasets import class_swap_noise, symmetric_label_noise

LABELS = (np.arange(1000) * 7 % 10).astype(np.int32)
SWAPS = {4: 9, 9: 4, 7: 1}


def check_mask(result, labels):
    assert result.noisy.dtype == labels.dtype
    assert result.noisy.shape == result.is_wrong.shape == labels.shape
    assert result.is_wrong.dtype == np.bool_
    np.testing.assert_array_equal(result.is_wrong, result.noisy != labels)


@pytest.mark.parametrize("fraction", [0.0, 0.0004, 0.0006, 0.25, 1 / 3, 0.5, 0.999, 1])
@pytest.mark.parametrize("num", [1, 7, 1000])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_symmetric_count(fraction, num, dtype):
    labels = LABELS[:num].astype(dtype)
    result = symmetric_label_noise(labels, fraction, 10, seed=1)
    check_mask(result, labels)
    assert result.is_wrong.sum() == round(fraction * num)
    assert 0 <= result.noisy.min() <= result.noisy.max() < 10
    np.testing.assert_array_equal(labels, LABELS[:num])  # the argument is untouched


def test_symmetric_two_classes_is_a_flip():
    labels = (np.arange(50) % 2).astype(np.int32)
    result = symmetric_label_noise(labels, 1.0, 2, seed=0)
    np.testing.assert_array_equal(result.noisy, 1 - labels)


def test_symmetric_is_uniform_over_the_other_classes():
    labels = np.full(40000, 2, np.int32)
    noisy = symmetric_label_noise(labels, 1.0, 5, seed=0).noisy
    counts = np.bincount(noisy, minlength=5)
    assert counts[2] == 0
    # 10000 each, standard deviation 87; the seed is fixed.
    assert np.abs(np.delete(counts, 2) - 10000).max() < 5 * 87


def test_symmetric_positions_are_uniform():
    wrong = symmetric_label_noise(np.zeros(40000, np.int32), 0.5, 3, seed=0).is_wrong
    # Of 10000 positions half are wrong, standard deviation below 50.
    for part in wrong.reshape(4, -1):
        assert abs(part.sum() - 5000) < 250


def test_symmetric_uses_classes_that_do_not_occur():
    noisy = symmetric_label_noise(np.zeros(1000, np.int32), 1.0, 4, seed=0).noisy
    assert set(noisy.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.333, 0.5, 1.0])
def test_swap_count_and_partner(fraction):
    result = class_swap_noise(LABELS, fraction, SWAPS, seed=1)
    check_mask(result, LABELS)
    assert result.is_wrong.sum() == round(fraction * 300)
    for label in range(10):
        of_class = LABELS == label
        wrong = result.is_wrong[of_class].sum()
        if label in SWAPS:
            assert abs(wrong - fraction * 100) < 1
            assert set(result.noisy[of_class & result.is_wrong]) <= {SWAPS[label]}
        else:
            assert wrong == 0


def test_swap_does_not_depend_on_the_order_of_the_mapping():
    first = class_swap_noise(LABELS, 0.4, SWAPS, seed=1)
    second = class_swap_noise(LABELS, 0.4, dict(reversed(SWAPS.items())), seed=1)
    np.testing.assert_array_equal(first.noisy, second.noisy)


def symmetric(seed):
    return symmetric_label_noise(LABELS, 0.4, 10, seed)


def swap(seed):
    return class_swap_noise(LABELS, 0.4, SWAPS, seed)


@pytest.mark.parametrize("noise", [symmetric, swap])
def test_seed(noise):
    first, again, other = noise(3), noise(3), noise(4)
    assert first.noisy.tobytes() == again.noisy.tobytes()
    assert first.is_wrong.tobytes() == again.is_wrong.tobytes()
    assert (first.is_wrong != other.is_wrong).any()


def test_bits_are_fixed_for_ever():
    # Values of this code at its first release: a change would alter experiments.
    labels = np.arange(10, dtype=np.int32)
    assert symmetric_label_noise(labels, 0.5, 10, seed=0).noisy.tolist() == [
        0,
        2,
        2,
        3,
        5,
        7,
        6,
        7,
        6,
        6,
    ]


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan"), 30])
def test_fraction_range(fraction):
    match = rf"fraction must be in \[0, 1\], got {fraction}"
    with pytest.raises(ValueError, match=match):
        symmetric_label_noise(LABELS, fraction, 10, seed=0)
    with pytest.raises(ValueError, match=match):
        class_swap_noise(LABELS, fraction, SWAPS, seed=0)


@pytest.mark.parametrize(
    "labels", [LABELS.astype(np.float32), LABELS.reshape(2, -1), np.zeros(3, np.bool_)]
)
def test_labels_must_be_an_integer_vector(labels):
    match = f"vector of integers, got {labels.dtype}"
    with pytest.raises(ValueError, match=match):
        symmetric_label_noise(labels, 0.1, 10, seed=0)
    with pytest.raises(ValueError, match=match):
        class_swap_noise(labels, 0.1, SWAPS, seed=0)


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_too_few_classes(num_classes):
    with pytest.raises(ValueError, match=f"at least 2, got {num_classes}"):
        symmetric_label_noise(np.zeros(3, np.int32), 0.1, num_classes, seed=0)


def test_labels_outside_the_classes():
    with pytest.raises(ValueError, match="num_classes - 1 = 8, got values from 0 to 9"):
        symmetric_label_noise(LABELS, 0.1, 9, seed=0)
    with pytest.raises(ValueError, match="got values from -1 to 8"):
        symmetric_label_noise(LABELS - 1, 0.1, 10, seed=0)


def test_type_too_small_for_the_classes():
    with pytest.raises(ValueError, match=r"int8 cannot hold class 199.*int32"):
        symmetric_label_noise(LABELS.astype(np.int8), 0.1, 200, seed=0)


def test_no_labels():
    empty = np.zeros(0, np.int32)
    assert symmetric_label_noise(empty, 0.5, 10, seed=0).noisy.shape == (0,)


def test_bad_pairs():
    with pytest.raises(ValueError, match="at least one class to another, got none"):
        class_swap_noise(LABELS, 0.1, {}, seed=0)
    with pytest.raises(ValueError, match=r"got \[3\] mapped to themselves"):
        class_swap_noise(LABELS, 0.1, {3: 3, 1: 7}, seed=0)
    with pytest.raises(ValueError, match=r"must occur in labels, got \[-1, 10, 11\]"):
        class_swap_noise(LABELS, 0.1, {10: 1, 2: 11, -1: 3}, seed=0)
    with pytest.raises(TypeError):
        class_swap_noise(LABELS, 0.1, {1.5: 2}, seed=0)  # type: ignore[dict-item]


@pytest.mark.parametrize("noise", [symmetric, swap])
def test_negative_seed(noise):
    with pytest.raises(ValueError, match="non-negative integer, got -2"):
        noise(-2)
