"""Costs against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import energy

OUTPUTS = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
LABELS = jnp.array([1, 0])
VECTORS = jnp.eye(3)[LABELS]


def test_squared_error():
    cost = energy.squared_error()
    expected = [(1 + 1 + 0.25) / 2, (1 + 1 + 9) / 2]
    np.testing.assert_allclose(cost.value(OUTPUTS, VECTORS), expected)
    np.testing.assert_array_equal(
        cost.value(OUTPUTS, LABELS), cost.value(OUTPUTS, VECTORS)
    )
    images = jnp.ones((2, 4, 4, 1))
    np.testing.assert_allclose(cost.value(images, 0 * images), [8.0, 8.0])


def test_cross_entropy():
    cost = energy.cross_entropy()
    odds = np.exp(OUTPUTS)
    expected = -np.log(odds[[0, 1], [1, 0]] / odds.sum(1))
    np.testing.assert_allclose(cost.value(OUTPUTS, LABELS), expected, rtol=1e-12)
    np.testing.assert_array_equal(
        cost.value(OUTPUTS, LABELS), cost.value(OUTPUTS, VECTORS)
    )


@pytest.mark.parametrize("make", [energy.squared_error, energy.cross_entropy])
@pytest.mark.parametrize(
    "targets",
    [LABELS[:1], LABELS[:, None], VECTORS[:, :2], VECTORS.astype(int)],
    ids=["too few", "a column", "another width", "integers of the outputs' shape"],
)
def test_other_targets_are_refused(make, targets):
    with pytest.raises(
        ValueError, match=r"integer labels \[B\] or floats of the shape"
    ):
        make().value(OUTPUTS, targets)


def test_positions_of_an_example_are_summed():
    outputs = jnp.arange(24.0).reshape(2, 4, 3) / 7
    targets = jnp.broadcast_to(VECTORS[:, None], (2, 4, 3))
    cost = energy.cross_entropy()
    each = [cost(outputs[:, k], LABELS) for k in range(4)]
    np.testing.assert_allclose(cost(outputs, targets), sum(each), rtol=1e-14)
    found = cost(outputs.astype(complex), targets)
    np.testing.assert_allclose(found, sum(each), rtol=1e-14)


def test_a_cost_that_is_no_number_for_each_example():
    mean = energy.Cost("mean", lambda outputs, targets: jnp.mean(outputs))
    with pytest.raises(ValueError, match=r"'mean' must .* \(2,\), got the shape \(\)"):
        mean(OUTPUTS, LABELS)
