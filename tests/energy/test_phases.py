"""What is told of phases: a gradient that is not the nudge's response is flagged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from bilevel import energy, hypergradients, inner_solvers, linear_solvers, trees
from bilevel.energy import networks, phases, relaxations
from bilevel.energy.relaxations.base import rms

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
@pytest.mark.thinned(3)
def test_a_nudge_below_rounding_is_no_nudge(dtype, beta, expected):
    network, *args = hopfield("hard_sigmoid", 8, 2)
    settle = relaxations.sweeps(60)
    rule = energy.equilibrium_propagation(network, COST, settle, beta=beta)
    assert bool(aux_of(rule, *args, dtype=dtype).converged) is expected


def two_units(weight):
    """E = |h|^2/2 + |o|^2/2 - <h, a> - <o, h w>: sweeps contract by w^2."""
    blocks = [linen.Dense(1, param_dtype=float) for _ in range(2)]
    chain = energy.feedforward(blocks, "identity")
    values = [[0.8], [weight]]
    params = [{"kernel": jnp.array([v]), "bias": jnp.array([0.1])} for v in values]
    inputs = jnp.array([[0.7], [-0.4], [1.2]])
    return networks.hopfield(chain), params, inputs, jnp.array([[1.0], [0.3], [-0.5]])


RELAXED = {
    "equilibrium_propagation": energy.equilibrium_propagation,
    "coupled_learning": energy.coupled_learning,
    "recurrent_back_propagation": energy.recurrent_back_propagation,
    "contrastive_hebbian_learning": energy.contrastive_hebbian_learning,
}


@pytest.mark.parametrize("name", [*RELAXED, "implicit"])
@pytest.mark.thinned(3)
def test_nan_in_an_input_is_nan_in_the_value(name):
    """E6: a loop that a NaN ends before the outputs have seen it."""
    network, params, inputs, labels = hopfield("hard_sigmoid", 6, 3)
    inputs = inputs.at[2, 1].set(jnp.nan)
    if name == "implicit":
        solver = energy.state_solver(network, rtol=1e-8)
        implicit = hypergradients.implicit()
        rule = energy.by_hypergradient("implicit", network, COST, solver, implicit)
    else:
        rule = RELAXED[name](network, COST, relaxations.sweeps(200, rtol=1e-8))
    (value, aux), grads = jax.jit(rule)(params, inputs, labels)
    assert jnp.isnan(value)
    assert jnp.any(jnp.isnan(aux.outputs))
    assert not aux.converged
    assert any(jnp.any(jnp.isnan(x)) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("symmetric", "expected"), [(True, True), (False, False), (None, None)]
)
@pytest.mark.thinned(3)
def test_asymmetric_weights_are_said_to_be_biased(symmetric, expected):
    """E7: the phases converge, and their contrast is no gradient."""
    edges = [("inputs", "h", linen.Dense(5)), ("h", "o", linen.Dense(3))]
    if not symmetric:
        edges.append(("o", "h", linen.Dense(5)))
    units, layers = {"h": "tanh", "o": "identity"}, {"h": (5,), "o": (3,)}
    network = networks.connected(layers, edges, "o", units, symmetric=bool(symmetric))
    if symmetric is None:  # of one's own: nobody has looked
        network = network._replace(conservative=None)
    inputs = jax.random.normal(KEY, (3, 4), float)
    params = jax.tree.map(lambda x: (0.6 * x).astype(float), network.init(KEY, inputs))
    settle = relaxations.sweeps(200, order="synchronous")
    rule = energy.equilibrium_propagation(network, COST, settle, beta=1e-3)
    aux = aux_of(rule, params, inputs, jnp.arange(3))
    assert aux.converged
    assert (None if aux.unbiased is None else bool(aux.unbiased)) is expected
    if symmetric is None:
        return
    if symmetric:  # clamped phases descend something else
        clamped = energy.coupled_learning(network, COST, settle)
        assert not aux_of(clamped, params, inputs, jnp.arange(3)).unbiased
        return
    solver = linear_solvers.normal_cg()
    exact = energy.recurrent_back_propagation(network, COST, settle, solver)
    (_, found), grads = jax.jit(exact)(params, inputs, jnp.arange(3))
    assert found.unbiased
    _, contrasted = jax.jit(rule)(params, inputs, jnp.arange(3))
    assert float(trees.norm(trees.sub(contrasted, grads)) / trees.norm(grads)) > 0.3


@pytest.mark.parametrize("num_sweeps", [1, 30])
def test_a_slow_relaxation_has_not_converged(num_sweeps):
    """Its last sweep moves it by little, and a thousand of them by much."""
    network, *args = two_units(0.98**0.5)
    settled, few = relaxations.sweeps(4000), relaxations.sweeps(num_sweeps)
    make = energy.equilibrium_propagation
    assert aux_of(make(network, COST, settled, beta=1e-3), *args).converged
    for free in (settled, few):
        aux = aux_of(make(network, COST, free, few, beta=1e-3), *args)
        assert not aux.converged
    if num_sweeps > 1:
        assert aux.nudged_residual < 0.1 * aux.displacement


@pytest.mark.parametrize("name", ["sweeps", "swinging", "damped", "gradient", "rtol"])
def test_distance_is_that_to_the_fixed_point(name):
    """Linear, of one rate, which the last residuals have."""
    network, params, inputs, _ = two_units(0.9**0.5)
    solver = {
        "sweeps": relaxations.sweeps(40),
        "swinging": relaxations.sweeps(80, order="synchronous"),
        "damped": relaxations.sweeps(90, order="synchronous", step_size=0.5),
        "gradient": relaxations.gradient(optax.sgd(0.5), 90),
        "rtol": relaxations.sweeps(1000, rtol=1e-3),
    }[name]
    relaxed = jax.jit(
        lambda solver: phases.relax_free(network, solver, params, inputs),
        static_argnums=0,
    )
    found, exact = relaxed(solver), relaxed(relaxations.sweeps(4000)).state
    gaps = jax.tree.map(jnp.subtract, found.state, exact)
    assert float(found.distance) == pytest.approx(
        float(rms(jax.tree.leaves(gaps))), rel=0.02
    )
    if name != "swinging":  # to both sides of where it leads
        assert float(found.distance) > 1.5 * float(found.residual)


@pytest.mark.parametrize("nudging", ["negative", "centred"])
def test_a_nudge_that_the_whole_network_cannot_bear(nudging):
    """1 - w^2 < beta < 1: bounded below in each unit, but not in both."""
    network, *args = two_units(0.1005**0.5)
    free, nudged = relaxations.sweeps(200), relaxations.sweeps(30)
    make = energy.equilibrium_propagation
    rule = make(network, COST, free, nudged, beta=0.9, nudging=nudging)
    assert not aux_of(rule, *args).converged


def test_a_negative_nudge_beyond_the_curvature_of_an_energy():
    """Of 1, while 2 is given, which the size of a step needs."""
    network = networks.from_energy(
        lambda params, s, u: jnp.sum(s[0] ** 2 / 2 - s[0] * (u @ params)),
        init=lambda key, u: jax.random.normal(key, (5, 3)),
        start=lambda params, u: [jnp.zeros((len(u), 3))],
        output=0,
        curvature=2.0,
    )
    inputs, labels = jax.random.normal(KEY, (4, 5)), jnp.arange(4) % 3
    free, nudged = relaxations.sweeps(100), relaxations.sweeps(30)
    make = energy.equilibrium_propagation
    for beta, expected in ((0.5, True), (1.05, False)):
        rule = make(network, COST, free, nudged, beta=beta, tolerance=0.2)
        aux = aux_of(rule, network.init(KEY, inputs), inputs, labels)
        assert bool(aux.converged) is expected


def test_a_nudge_in_an_array_is_checked_where_its_value_is_known():
    network, *args = hopfield("tanh", 8, 2)
    settle = relaxations.sweeps(60)
    make = energy.equilibrium_propagation
    for beta in (jnp.array(0.0), jnp.float32(-0.1), jnp.array([0.1, jnp.nan])):
        with pytest.raises(ValueError, match="beta must be positive and finite"):
            make(network, COST, settle, beta=beta)
    with pytest.raises(ValueError, match="Expected beta < 1"):
        make(network, COST, settle, beta=jnp.array(2.0))

    @jax.jit
    def converged(beta):
        rule = make(network, COST, settle, beta=beta)
        return rule.value_and_grad(*args, None)[0][1].converged

    assert converged(0.5)
    assert not converged(2.0)  # at a saddle, where nothing moves


@pytest.mark.thorough
def test_an_adjoint_that_was_not_solved_has_not_converged():
    network, *args = hopfield("tanh", 8, 2, scale=0.8)
    solver = energy.state_solver(network, max_steps=300)
    for max_steps, expected in ((1, False), (100, True)):
        linear = linear_solvers.normal_cg(max_steps=max_steps)
        rule = energy.by_hypergradient(
            "implicit", network, COST, solver, hypergradients.implicit(linear)
        )
        assert bool(aux_of(rule, *args).converged) is expected


@pytest.mark.parametrize(("num_sweeps", "expected"), [(3, False), (40, True)])
@pytest.mark.thorough
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


@pytest.mark.parametrize("which", ["equilibrium", "recurrent", "implicit"])
@pytest.mark.thinned(3)
def test_from_a_kept_state_fewer_sweeps_lead_to_the_same(which):
    """In a loop: the last pass's states of the same examples, after a step."""
    network, params, inputs, labels = hopfield("hard_sigmoid", 8, 6, 3, scale=0.6)
    settle = relaxations.sweeps(200, rtol=1e-5)

    @jax.jit
    def step(params, state):
        warm = network._replace(start=lambda params, inputs: state)
        rule = {
            "equilibrium": lambda: energy.equilibrium_propagation(warm, COST, settle),
            "recurrent": lambda: energy.recurrent_back_propagation(warm, COST, settle),
            "implicit": lambda: energy.by_hypergradient(
                "implicit",
                warm,
                COST,
                energy.state_solver(warm, max_steps=200, rtol=1e-5),
                hypergradients.implicit(),
            ),
        }[which]()
        (_, aux), grads = rule(params, inputs, labels)
        moved = jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)
        return moved, aux, grads

    cold = network.start(params, inputs)
    params, first, _ = step(params, cold)
    _, warm, grads = step(params, first.state)
    _, again, expected = step(params, cold)
    assert warm.converged
    assert 0 < warm.free_steps < 0.7 * again.free_steps
    assert 0 < warm.nudged_steps < 200
    gaps = jax.tree.map(jnp.subtract, grads, expected)
    assert optax.tree.norm(gaps) < 1e-2 * optax.tree.norm(expected)


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


@pytest.mark.thorough
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


@pytest.mark.parametrize("which", ["positive", "coupled", "lpom", "predictive"])
@pytest.mark.thinned(3)
def test_a_traced_nudge_that_is_none_has_not_converged(which):
    network, params, inputs, labels = hopfield("tanh", 8, 2)
    chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
    settle = relaxations.sweeps(60)
    make = {
        "positive": lambda beta: energy.equilibrium_propagation(
            network, COST, settle, beta=beta, nudging="positive"
        ),
        "coupled": lambda beta: energy.coupled_learning(
            network, COST, settle, beta=beta
        ),
        "lpom": lambda beta: energy.lpom(chain, COST, beta=beta, num_sweeps=40),
        "predictive": lambda beta: energy.predictive_coding(
            chain, COST, relaxations.sweeps(200, order="synchronous"), beta=beta
        ),
    }[which]
    run = jax.jit(lambda beta: make(beta).value_and_grad(params, inputs, labels, None))
    for beta, expected in ((0.0, False), (-0.1, False), (np.nan, False), (0.05, True)):
        assert bool(run(beta)[0][1].converged) is expected


@pytest.mark.thorough
def test_a_label_that_is_no_class():
    network, params, inputs, _ = hopfield("tanh", 8, 3)
    for cost in (energy.squared_error(), energy.cross_entropy()):
        rule = energy.equilibrium_propagation(network, cost, relaxations.sweeps(9))
        for label in (-1, 3):
            (value, aux), _ = jax.jit(rule)(params, inputs, jnp.array([0, 1, 2, label]))
            assert jnp.isnan(value)
            assert not aux.converged


def test_a_function_that_is_no_cost():
    network, *_ = hopfield("tanh", 8, 2)
    chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
    function, settle = lambda o, y: jnp.sum((o - y) ** 2, 1), relaxations.sweeps(3)
    for make in (
        lambda: energy.equilibrium_propagation(network, function, settle),
        lambda: energy.coupled_learning(network, function, settle),
        lambda: energy.lpom(chain, function),
        lambda: energy.predictive_coding(chain, function),
    ):
        with pytest.raises(ValueError, match=r"must be an energy.Cost, got function"):
            make()


def test_a_state_in_a_state_is_refused():
    with pytest.raises(ValueError, match="got dict at 'a'; give each of its arrays"):
        networks.base.keys_of({"a": {"b": jnp.zeros(2)}})


@pytest.mark.thorough
def test_a_resistive_network_of_unsigned_images():
    network = networks.resistive([5, 4, 2])
    images = jnp.arange(10, dtype=jnp.uint8).reshape(2, 5) * 25
    params = network.init(KEY, images.astype(jnp.float32))
    ends = [
        phases.relax_free(network, relaxations.sweeps(20), params, own).state[-1]
        for own in (images, images.astype(jnp.float32))
    ]
    np.testing.assert_array_equal(*ends)
    assert jnp.any(ends[0] != 0)


def test_holomorphic_rules_look_at_cost_and_outputs():
    network, params, inputs, labels = hopfield("tanh", 8, 2)

    def run(network, value):
        cost = energy.Cost("mine", value, holomorphic=True)
        rule = energy.holomorphic_equilibrium_propagation(
            network, cost, relaxations.sweeps(3)
        )
        jax.eval_shape(rule.value_and_grad, params, inputs, labels, None)

    size = lambda o, y: jnp.sum(o * jnp.conj(o), 1)
    with pytest.raises(ValueError, match="applies conj to the state"):
        run(network, size)
    outputs = lambda params, state: jnp.maximum(state[-1], 0)
    with pytest.raises(ValueError, match="applies max to the state"):
        run(network._replace(outputs=outputs), lambda o, y: jnp.sum(o**2, 1))
    run(network, lambda o, y: jnp.sum(o**2, 1))
    with pytest.raises(ValueError, match="states with bounds are not analytic"):
        networks.from_energy(
            network.energy,
            network.init,
            network.start,
            1,
            holomorphic=True,
            project=lambda s: jnp.maximum(s, 0),
        )


@pytest.mark.thorough
def test_anderson_in_half_precision():
    network, *args = hopfield("tanh", 8, 2)
    rule = energy.equilibrium_propagation(network, COST, relaxations.anderson(20))
    assert jnp.isfinite(aux_of(rule, *args, dtype=jnp.float16).displacement)


def test_a_coupling_for_each_example_is_refused():
    """E4: with as many phases as examples it would have a gradient, a wrong one."""
    network, params, inputs, labels = hopfield("tanh", 6, 3)
    inputs, labels = inputs[:2], labels[:2]
    each = lambda p, s, u: network.coupling(p, s, u) * jnp.ones(2)
    own = network._replace(coupling=each)
    rule = energy.equilibrium_propagation(own, COST, relaxations.sweeps(5))
    with pytest.raises(ValueError, match="an energy must be one number, the sum over"):
        rule(params, inputs, labels)
