"""The public check: it passes where it must, and fails where something is wrong."""

import jax
import jax.numpy as jnp
import pytest
from energy.networks import CLASSES, KEY, Dense, data, dense

from bilevel import energy

COST = energy.squared_error()


def halved(network, inputs):
    """Small weights, so that there is one state."""
    return jax.tree.map(lambda x: 0.5 * x, network.init(KEY, inputs))


def test_passes_for_a_hopfield_network():
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    network = energy.networks.hopfield(chain)
    found = energy.check_estimator(
        network, COST, halved(network, inputs), inputs, labels, steps=(2,)
    )
    assert found.passed, str(found)
    names = [check.name for check in found.checks]
    assert len(names) == len(set(names)) == 11
    assert "holomorphic, 4 points" in names
    assert str(found).splitlines()[0].split() == ["identity", "expected", "found"]


def test_passes_for_a_chain():
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    found = energy.check_estimator(chain, COST, halved(chain, inputs), inputs, labels)
    assert found.passed, str(found)
    assert len(found.checks) == 11


def test_fails_where_there_is_no_energy():
    """Feedback weights of their own: the response is not that of the energy."""
    edges = [
        ("inputs", "hidden", Dense(6)),
        ("hidden", "out", Dense(CLASSES)),
        ("out", "hidden", Dense(6)),
    ]
    network = energy.networks.connected(
        {"hidden": (6,), "out": (CLASSES,)}, edges, "out", "tanh", symmetric=False
    )
    inputs, labels = data((4, 20))
    found = energy.check_estimator(
        network, COST, halved(network, inputs), inputs, labels, steps=(2,)
    )
    failed = {check.name for check in found.checks if not check.passed}
    assert not found.passed
    assert any(name.startswith("Danskin") for name in failed)
    assert "equilibrium propagation, centred" in failed
    assert "FAILED" in str(found)


def test_wants_float64():
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    params = jax.tree.map(jnp.float32, chain.init(KEY, inputs))
    with pytest.raises(ValueError, match="expected float64, got float32"):
        energy.check_estimator(chain, COST, params, inputs, labels)
