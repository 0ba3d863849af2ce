"""What is told of phases: a gradient that is not the nudge's response is flagged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from bilevel import energy, hypergradients, inner_solvers
from bilevel.energy import networks, relaxations

KEY = jax.random.key(0)
COST = energy.squared_error()


def hopfield(activation, *widths, scale=0.3):
    chain = energy.feedforward([linen.Dense(n) for n in widths], activation)
    network = networks.hopfield(chain)
    inputs = jax.random.normal(jax.random.key(1), (4, 5))
    params = jax.tree.map(lambda x: scale * x, network.init(KEY, inputs))
    return network, params, inputs, jnp.arange(4) % widths[-1]


def aux_of(rule, params, inputs, labels, dtype=None):
    if dtype is not None:
        cast = lambda x: x.astype(dtype)
        params, inputs = jax.tree.map(cast, params), cast(inputs)
    return jax.jit(rule.value_and_grad)(params, inputs, labels, None)[0][1]


@pytest.mark.parametrize(
    ("dtype", "beta", "expected"),
    [
        (jnp.float32, 0.1, True),
        (jnp.float32, 1e-9, False),  # nothing moves: the gradient is rounding
        (jnp.float64, 1e-9, True),
        (jnp.bfloat16, 1e-3, False),
    ],
)
def test_a_nudge_below_rounding_is_no_nudge(dtype, beta, expected):
    network, *args = hopfield("hard_sigmoid", 8, 2)
    settle = relaxations.sweeps(60)
    rule = energy.equilibrium_propagation(network, COST, settle, beta=beta)
    assert bool(aux_of(rule, *args, dtype=dtype).converged) is expected


@pytest.mark.parametrize(("num_sweeps", "expected"), [(3, False), (40, True)])
def test_a_layer_that_the_nudge_has_not_reached(num_sweeps, expected):
    network, *args = hopfield("tanh", 16, 16, 16, 16, 3, scale=0.2)
    rule = energy.equilibrium_propagation(
        network,
        COST,
        relaxations.sweeps(100, order="synchronous"),
        relaxations.sweeps(num_sweeps, order="synchronous"),
        beta=0.05,
    )
    aux = aux_of(rule, *args)
    # All layers together would pass: the output moves the most.
    assert aux.nudged_residual < 0.1 * aux.displacement
    assert bool(aux.converged) is expected


def test_a_kept_state_of_another_batch_is_refused():
    network, params, inputs, _ = hopfield("tanh", 8, 2)
    kept = network.start(params, inputs[:1])
    network = network._replace(start=lambda params, inputs: kept)
    rule = energy.equilibrium_propagation(network, COST, relaxations.sweeps(3))
    with pytest.raises(ValueError, match=r"of 4 inputs .* got a start of \[1\]"):
        rule.apply(params, inputs)


def test_truncated_back_propagation_says_when_the_state_has_settled():
    network, *args = hopfield("tanh", 8, 2)
    make = energy.truncated_back_propagation_through_time
    for num_steps, expected in ((2, False), (60, True)):
        rule = make(network, COST, num_steps=num_steps, truncation=2)
        assert bool(aux_of(rule, *args).converged) is expected


def test_a_solver_that_goes_out_of_bounds_has_not_converged():
    network, params, inputs, labels = hopfield("hard_sigmoid", 8, 2, scale=0.5)

    def aux(solver):
        rule = energy.by_hypergradient(
            "implicit", network, COST, solver, hypergradients.implicit()
        )
        return aux_of(rule, params, inputs, labels)

    settled = aux(energy.state_solver(network, max_steps=100))
    assert settled.converged
    hidden = settled.state[0]
    assert jnp.any(hidden == 0)  # units at a bound, which the energy does not know of
    assert not aux(inner_solvers.newton()).converged


@pytest.mark.parametrize(
    "options", [{"max_steps": 0}, {"max_steps": -3}, {"rtol": 2.0}, {"rtol": np.nan}]
)
def test_limits_of_the_state_solver(options):
    network, *_ = hopfield("tanh", 8, 2)
    with pytest.raises(ValueError, match=f"state_solver: {next(iter(options))}"):
        energy.state_solver(network, **options)


def test_lpom_takes_a_first_block_of_any_kind():
    blocks = [[linen.Embed(11, 6), lambda s: s.mean(1)], linen.Dense(8), linen.Dense(2)]
    rule = energy.lpom(energy.feedforward(blocks), COST)
    words, labels = jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([0, 1])
    params = rule.init(KEY, words)
    grads = jax.eval_shape(rule.value_and_grad, params, words, labels, None)[1]
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


def test_direct_feedback_alignment_in_mixed_precision():
    types = (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    layers = [linen.Dense(n, dtype=t) for n, t in zip((8, 6, 2), types, strict=True)]
    chain = energy.feedforward(layers, "tanh")
    rule = energy.direct_feedback_alignment(chain, energy.cross_entropy())
    inputs, labels = jnp.ones((3, 4), jnp.float32), jnp.array([0, 1, 1])
    params = jax.eval_shape(rule.init, KEY, inputs)
    (value, _), _ = jax.eval_shape(rule.value_and_grad, params, inputs, labels, None)
    assert value.shape == ()


def test_bounds_of_an_entry_that_is_not_there():
    network = networks.from_energy(
        lambda params, state, inputs: jnp.sum(state["h"] ** 2 / 2 - state["h"]),
        init=lambda key, inputs: (),
        start=lambda params, inputs: {"h": jnp.zeros((len(inputs), 2))},
        output="h",
        project={"hh": lambda s: jnp.clip(s, 0, 1)},
    )
    with pytest.raises(ValueError, match=r"project has 'hh', .* \['h'\]"):
        network.respond(
            (), network.start((), jnp.ones((3, 1))), jnp.ones((3, 1)), {}, {}
        )
