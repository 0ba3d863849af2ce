"""The public check: it passes where it must, and fails where something is wrong."""

import functools

import jax
import jax.numpy as jnp
import pytest
from energy.networks import CLASSES, KEY, Conv, Dense, data, dense
from flax import linen

from bilevel import energy
from bilevel.energy import checks, networks
from bilevel.energy.phases import Data

COST = energy.squared_error()


def halved(network, inputs):
    """Small weights, so that there is one state."""
    return jax.tree.map(lambda x: 0.5 * x, network.init(KEY, inputs))


@pytest.mark.thorough
def test_passes_for_a_hopfield_network():
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    network = energy.networks.hopfield(chain)
    found = energy.check_estimator(
        network, COST, halved(network, inputs), inputs, labels, steps=(2,)
    )
    assert found.passed, str(found)
    names = [check.name for check in found.checks]
    assert len(names) == len(set(names)) == 13
    assert "holomorphic, 4 points" in names
    assert str(found).splitlines()[0].split() == ["identity", "expected", "found"]


def convolutional():
    pool = lambda s: linen.avg_pool(s, (2, 2), (2, 2))
    flat = lambda s: s.reshape(len(s), -1)
    blocks = [[Conv(2, (3, 3)), pool], [flat, Dense(CLASSES)]]
    return networks.hopfield(energy.feedforward(blocks, "tanh")), (3, 4, 4, 2)


def recurrent():
    edges = [
        ("inputs", "hidden", Dense(6)),
        ("hidden", "hidden", Dense(6)),
        ("hidden", "out", Dense(CLASSES)),
        ("inputs", "out", Dense(CLASSES)),  # a skip
    ]
    units = {"hidden": "tanh", "out": "identity"}
    widths = {"hidden": (6,), "out": (CLASSES,)}
    return networks.connected(widths, edges, "out", units), (3, 8)


def resistive():
    return networks.resistive([6, 5, CLASSES], gain=2.0), (3, 6)


@pytest.mark.parametrize(
    "make",
    [
        convolutional,
        pytest.param(recurrent, marks=pytest.mark.thorough),
        pytest.param(resistive, marks=pytest.mark.thorough),
    ],
)
@pytest.mark.thorough
def test_passes_for_networks_of_every_kind(make):
    """Danskin's equality, the bounds and the transient on them, too."""
    network, shape = make()
    inputs, labels = data(shape)
    params = network.init(KEY, inputs)
    if make is not resistive:
        params = jax.tree.map(lambda x: 0.3 * x, params)
    # Small for the diodes: no voltage may reach a bound between two of them.
    betas = (2e-3, 1e-3, 5e-4) if make is resistive else (0.02, 0.01, 0.005)
    found = energy.check_estimator(
        network, COST, params, inputs, labels, steps=(3,), betas=betas
    )
    assert found.passed, str(found)
    left_out = [c.name for c in found.checks if c.found.startswith("left out")]
    assert left_out == (["holomorphic"] if make is resistive else [])


@pytest.mark.thorough
def test_a_nudged_phase_that_runs_away_is_named():
    """Of a lifted network, whose layers all move at once by their full responses."""
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    network = networks.lifted(chain)
    params = jax.tree.map(lambda x: 3 * x, network.init(KEY, inputs))
    found = energy.check_estimator(network, COST, params, inputs, labels, steps=())
    failed = [check.name for check in found.checks if not check.passed]
    # The free phase starts where it should end; whether rounding drives it away depends
    # on the version.
    assert "the nudged phases settle: residual" in failed, str(found)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.thorough
def test_passes_for_a_chain(activation):
    chain, shape = dense(activation, widths=(6,))
    inputs, labels = data(shape)
    found = energy.check_estimator(chain, COST, halved(chain, inputs), inputs, labels)
    assert found.passed, str(found)
    assert len(found.checks) == 11
    named = {check.name: check.found for check in found.checks}
    is_exact = named["dual propagation, alpha 0"].startswith("exact")
    assert is_exact == (activation == "relu")


def test_orders_where_errors_vanish():
    """Exact at the smaller betas: a kink was crossed at the first."""
    order = functools.partial(checks.order, "", (0.02, 0.01, 0.005))
    kink, never = order((0.1, 1e-14, 1e-15), 1), order((1e-14, 1e-14, 1e-15), 1)
    assert kink.passed
    assert kink.found.startswith("exact from 0.01")
    assert never.passed
    assert never.found.startswith("exact, ")
    assert not order((0.1, 0.1, 1e-15), 1).passed
    assert not order((0.4, 0.1, 0.025), 1).passed
    assert order((0.4, 0.1, 0.025), 2).passed


@pytest.mark.thorough
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


def of_one_layer(reduce):
    total = lambda p, s, u: reduce(jnp.sum(s[0] ** 2 / 2 - s[0] * (u @ p), -1))
    return networks.from_energy(
        total,
        init=lambda key, u: jax.random.normal(key, (u.shape[1], CLASSES), float),
        start=lambda p, u: [jnp.zeros((len(u), CLASSES))],
        output=0,
    )


@pytest.mark.parametrize("reduce", [jnp.sum, jnp.mean])
@pytest.mark.thorough
def test_an_energy_that_is_a_mean_is_named(reduce):
    """E5: all other identities hold for it, with another nudge."""
    network = of_one_layer(reduce)
    inputs, labels = data((4, 8))
    params = of_one_layer(jnp.sum).init(KEY, inputs)
    name = "the energy of a batch = the sum over its examples"
    if reduce is jnp.sum:
        state = [jax.random.normal(KEY, (4, CLASSES))]
        found = checks.is_a_sum(network, Data(params, inputs, labels), state)
        assert found.name == name
        assert found.passed, found
        return
    settle = energy.relaxations.sweeps(60, order="synchronous", step_size=0.7)
    whole = energy.check_estimator(
        network, COST, params, inputs, labels, free=settle, steps=()
    )
    assert not whole.passed
    assert name in [one.name for one in whole.checks if not one.passed]


@pytest.mark.thorough
def test_the_table_is_narrow_whatever_the_numbers():
    """E14: an energy that is unbounded below has numbers like 1e180."""
    total = lambda p, s, u: jnp.sum(-(s[0] ** 2) - s[0] * (u @ p))
    network = networks.from_energy(
        total,
        init=lambda key, u: jax.random.normal(key, (u.shape[1], CLASSES), float),
        start=lambda p, u: [jnp.zeros((len(u), CLASSES))],
        output=0,
    )
    inputs, labels = data((4, 8))
    params = network.init(KEY, inputs)
    few = energy.relaxations.sweeps(200, order="synchronous")
    found = energy.check_estimator(
        network, COST, params, inputs, labels, steps=(), free=few
    )
    assert not found.passed
    assert max(len(line) for line in str(found).splitlines()) < 150


def test_wants_float64():
    chain, shape = dense(widths=(6,))
    inputs, labels = data(shape)
    params = jax.tree.map(jnp.float32, chain.init(KEY, inputs))
    with pytest.raises(ValueError, match="expected float64, got float32"):
        energy.check_estimator(chain, COST, params, inputs, labels)
