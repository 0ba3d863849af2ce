"""Parts of `examples/energy_based.py`: the optimiser, patches and pooling."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

ROOT = Path(__file__).parents[1]


@pytest.fixture
def rules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from examples import energy_based_rules

    return energy_based_rules


def trained(rules, rule, num_steps, **options):
    """Parameters before and after some steps of SGD or AdamW."""
    from examples.energy_based_optimizer import optimizer_of

    config = rules.Config(
        model=rules.Model(hidden=(8, 6), activation="tanh"),
        learning=rules.Learning(rule=rule, cost="cross_entropy"),
        optimizer=rules.Optimizer(schedule="constant", **options),
    )
    made, optimizer = rules.rule_of(config, 5), optimizer_of(config, 10)
    inputs, labels = jax.random.normal(jax.random.key(1), (4, 5)), jnp.arange(4)
    first = params = made.init(jax.random.key(0), inputs)
    memory = optimizer.init(params)
    step = jax.jit(made.value_and_grad)
    for _ in range(num_steps):
        _, grads = step(params, inputs, labels, None)
        updates, memory = optimizer.update(grads, memory, params)
        params = optax.apply_updates(params, updates)
    return first, params


def test_feedback_that_is_learned_has_the_rate_of_its_block(rules):
    """Kolen-Pollack with SGD: W - B does not change."""
    rates = (0.3, 0.1, 0.01)
    first, last = trained(rules, "kolen_pollack", 10, name="sgd", learning_rates=rates)
    for k in range(2):
        moved = [
            getattr(p, part)[k + offset]["kernel"]
            for part, offset in (("forward", 1), ("feedback", 0))
            for p in (first, last)
        ]
        w_first, w_last, b_first, b_last = moved
        assert jnp.max(jnp.abs(w_last - w_first)) > 1e-3
        np.testing.assert_allclose(
            w_last - b_last, w_first - b_first, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("rule", ["feedback_alignment", "direct_feedback_alignment"])
@pytest.mark.thorough
def test_fixed_feedback_does_not_decay(rules, rule):
    first, last = trained(rules, rule, 5, name="adamw", weight_decay=0.5)
    jax.tree.map(np.testing.assert_array_equal, first.feedback, last.feedback)
    kernels = [p.forward[0]["kernel"] for p in (first, last)]
    assert not jnp.array_equal(*kernels)


def test_one_rate_or_one_for_each_layer(rules):
    with pytest.raises(ValueError, match="one for each of 3 layers, got"):
        trained(rules, "back_propagation", 1, learning_rates=(0.1, 0.2))


def test_gradients_are_clipped(rules):
    options = {"name": "sgd", "learning_rates": (1.0,), "clip": 1e-3}
    first, last = trained(rules, "back_propagation", 1, **options)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, last, first))
    assert float(moved) == pytest.approx(1e-3, rel=1e-4)


def test_a_setting_that_the_rule_does_not_know_is_refused(rules):
    def made(rule, **options):
        own = rules.Learning(rule=rule, **options)
        return rules.rule_of(rules.Config(learning=own), 5)

    with pytest.raises(ValueError, match=r"noise=0\.04 has no effect on z_il"):
        made("z_il", noise=0.04)
    with pytest.raises(ValueError, match="'positive' has no effect on lpom, only"):
        made("lpom", nudging="positive")
    assert made("equilibrium_propagation", noise=0.04, nudging="positive")
    assert made("predictive_coding", noise=0.04)
    for model, rule, said in (
        ({"kind": "resistive"}, "dual_propagation", "kind='resistive' has no effect"),
        ({"gain": 3.0}, "equilibrium_propagation", r"gain=3\.0 has no effect"),
        ({"output": "tanh"}, "z_il", "output='tanh' has no effect on z_il"),
    ):
        config = rules.Config(
            model=rules.Model(**model), learning=rules.Learning(rule=rule)
        )
        with pytest.raises(ValueError, match=said):
            rules.rule_of(config, 5)
    assert made("multi_pass_dual_propagation", original=True, damped=True)


def test_neighbours_and_a_dense_layer_are_a_convolution(rules):
    images = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    conv, dense = linen.Conv(4, (3, 3)), linen.Dense(4)
    params = conv.init(jax.random.key(1), images)["params"]
    flat = {**params, "kernel": params["kernel"].reshape(27, 4)}
    found = dense.apply({"params": flat}, rules.neighbours(images))
    expected = conv.apply({"params": params}, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_max_pool_is_that_of_flax(rules):
    images = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    expected = linen.max_pool(images, (2, 2), (2, 2))
    np.testing.assert_array_equal(rules.max_pool(images), expected)
