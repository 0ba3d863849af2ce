"""Blocks that dual propagation must refuse, and those that it must not."""

import jax.numpy as jnp
import pytest
from energy.networks import KEY, Conv, Dense, convolutional, data, dense
from flax import linen

from bilevel import energy
from bilevel.energy.affine import require_affine

COST = energy.squared_error()


def check(blocks, shape):
    chain = energy.feedforward(blocks)
    inputs = jnp.ones(shape)
    require_affine("rule", chain, chain.init(KEY, inputs), inputs)


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.thinned(2)
def test_dense_convolution_and_pooling_pass(make):
    chain, shape = make()
    inputs, _ = data(shape)
    require_affine("rule", chain, chain.init(KEY, inputs), inputs)


def test_strides_averages_flattening_and_scaling_pass():
    average = lambda s: linen.avg_pool(s, (2, 2), (2, 2))
    flat = lambda s: s.reshape(len(s), -1) / 2
    blocks = [Conv(4, (3, 3)), [average, Conv(3, (3, 3), strides=2)], [flat, Dense(5)]]
    check(blocks, (2, 8, 8, 2))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (jnp.tanh, "tanh"),
        (linen.relu, "max"),
        (linen.LayerNorm(param_dtype=jnp.float64), "rsqrt"),
        (lambda s: s * s, "mul"),
        (lambda s: jnp.where(s > 0, s, 0.1 * s), "gt, select_n"),
        (lambda s: 1 / s, "div"),
        (lambda s: jnp.int32(8 * s).astype(s.dtype) / 8, "convert_element_type"),
    ],
)
def test_what_is_not_affine_is_named(function, named):
    with pytest.raises(ValueError, match=f"block 1 applies .*{named}.* to its state"):
        check([Dense(4), [function, Dense(3)]], (2, 8))
    check([[function, Dense(4)], Dense(3)], (2, 8))  # nothing goes back through it


@pytest.mark.parametrize(
    "make",
    [
        energy.dual_propagation,
        energy.fenchel_back_propagation,
        energy.multi_pass_dual_propagation,
    ],
)
def test_rules_that_need_it_refuse(make):
    rule = make(energy.feedforward([Dense(4), [jnp.tanh, Dense(3)]]), COST)
    inputs, labels = jnp.ones((2, 8)), jnp.zeros(2, int)
    params = rule.init(KEY, inputs)
    with pytest.raises(ValueError, match="neither affine nor pooling"):
        rule(params, inputs, labels)
