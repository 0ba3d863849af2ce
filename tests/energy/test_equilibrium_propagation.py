"""Equilibrium propagation and the exact gradients of the same networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import CLASSES, KEY, Conv, Dense, data, relative_error
from flax import linen

from bilevel import energy, hypergradients, linear_solvers
from bilevel.energy import networks, phases
from bilevel.energy.relaxations import sweeps

COST = energy.squared_error()
SYNCHRONOUS = functools.partial(sweeps, order="synchronous")  # quick to compile
ONE, SETTLE, EXACT = SYNCHRONOUS(1), SYNCHRONOUS(400), linear_solvers.cg(rtol=1e-13)
make_ep = energy.equilibrium_propagation


def hopfield(activation="tanh", output="identity"):
    chain = energy.feedforward([Dense(8), Dense(6), Dense(CLASSES)], activation)
    return networks.hopfield(chain, output), data((4, 10))


def convolutional():
    pool = lambda s: linen.avg_pool(s, (2, 2), (2, 2))
    flat = lambda s: s.reshape(len(s), -1)
    chain = energy.feedforward(
        [[Conv(3, (3, 3)), pool], [flat, Dense(CLASSES)]], "tanh"
    )
    return networks.hopfield(chain), data((3, 4, 4, 2))


def recurrent(symmetric=True):
    shapes = {"hidden": (7,), "out": (CLASSES,), "middle": (6,)}
    edges = [
        ("inputs", "hidden", Dense(7)),
        ("hidden", "hidden", Dense(7)),
        ("hidden", "middle", Dense(6)),
        ("middle", "out", Dense(CLASSES)),
        ("hidden", "out", Dense(CLASSES)),  # a skip
    ]
    if not symmetric:
        edges.append(("out", "hidden", Dense(7)))
    units = {"hidden": "tanh", "middle": "tanh", "out": "identity"}
    network = networks.connected(shapes, edges, "out", units, symmetric=symmetric)
    return network, data((4, 10))


MAKERS = {"dense": hopfield, "convolutional": convolutional, "recurrent": recurrent}


def drawn(network, inputs, scale):
    """Normal weights of standard deviation scale / sqrt(fan in), and biases."""
    rng = np.random.default_rng(0)

    def one(x):
        fan_in = max(np.prod(x.shape[:-1]), 4)
        return jnp.asarray(scale * rng.normal(size=x.shape) / fan_in**0.5)

    return jax.tree.map(one, jax.eval_shape(network.init, KEY, inputs))


@functools.cache
def problem(name):
    """A network with one state, its exact gradient, and the cost."""
    network, (inputs, labels) = MAKERS[name]()
    args = (drawn(network, inputs, 0.2 if name == "recurrent" else 0.5), inputs, labels)
    rule = energy.recurrent_back_propagation(network, COST, SETTLE, EXACT)
    return network, args, jax.jit(rule.value_and_grad)(*args, None)


def gradient(rule, args, key=None):
    return jax.jit(rule.value_and_grad)(*args, key)[1]


BETAS = 0.1 * 0.5 ** np.arange(3)


def settled(name):
    """The network where it is already: one step is a free phase."""
    network, _, ((_, aux), _) = problem(name)
    return network._replace(start=lambda params, inputs: aux.state)


ORDERS = {"positive": 1, "negative": 1, "centred": 2}
ORDERS |= {"2 points": 2, "3 points": 3, "4 points": 4, "8 points": 8}
SCALES = {"8 points": 2}  # of beta: above rounding
ALL = ("positive", "negative", "centred", "4 points")
KINDS = {
    "dense": (*ALL, "8 points"),
    "convolutional": (*ALL, "2 points"),
    "recurrent": (*ALL, "3 points"),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.thorough
def test_orders_of_the_errors(name):
    _, args, (_, exact) = problem(name)
    network, kinds = settled(name), KINDS[name]

    @jax.jit
    def grads(beta):
        found = {}
        for kind in kinds:
            own = beta * SCALES.get(kind, 1)
            if "points" in kind:
                rule = energy.holomorphic_equilibrium_propagation(
                    network, COST, ONE, SETTLE, beta=own, num_points=int(kind[0])
                )
            else:
                rule = make_ep(network, COST, ONE, SETTLE, beta=own, nudging=kind)
            found[kind] = rule.value_and_grad(*args, None)[1]
        return found

    found = [grads(beta) for beta in BETAS]
    for kind in kinds:
        errors = [relative_error(one[kind], exact) for one in found]
        slopes = np.diff(np.log(errors)) / np.diff(np.log(BETAS))
        # The next order bends the line; a wrong order would be off by one.
        np.testing.assert_allclose(slopes[-1], ORDERS[kind], atol=0.1, err_msg=kind)
    if name == "convolutional":
        for one in found:
            assert relative_error(one["2 points"], one["centred"]) < 1e-12


def unrolled(network, params, inputs, labels, num_steps=300):
    """Plain automatic differentiation of the relaxation."""

    def cost(params):
        step = lambda s, _: (network.respond(params, s, inputs, {}, {}), None)
        state, _ = jax.lax.scan(step, network.start(params, inputs), None, num_steps)
        return jnp.mean(COST.value(network.outputs(params, state), labels)), state

    return jax.jit(jax.grad(cost, has_aux=True))(params)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.thinned(3)
def test_recurrent_back_propagation_is_the_gradient_through_the_sweeps(name):
    network, args, (_, exact) = problem(name)
    assert relative_error(exact, unrolled(network, *args)[0]) < 1e-9


def test_recurrent_back_propagation_of_units_at_their_bounds():
    network, args = hopfield("hard_sigmoid", "hard_sigmoid")
    params = drawn(network, args[0], 0.7)
    rule = energy.recurrent_back_propagation(network, COST, SETTLE, EXACT)
    (_, aux), exact = jax.jit(rule.value_and_grad)(params, *args, None)
    expected, state = unrolled(network, params, *args)
    units = np.concatenate(state, axis=1)
    assert 0.2 < np.mean((units > 0) & (units < 1)) < 0.8
    assert relative_error(exact, expected) < 1e-9
    assert bool(aux.converged)


@pytest.mark.thorough
def test_recurrent_back_propagation_of_asymmetric_weights():
    """No energy has this response, but a solver for any matrix has its gradient."""
    network, (inputs, labels) = recurrent(symmetric=False)
    params = drawn(network, inputs, 0.3)
    solver = linear_solvers.dense(symmetric=False)
    rule = energy.recurrent_back_propagation(network, COST, SETTLE, solver)
    exact = gradient(rule, (params, inputs, labels))
    expected, _ = unrolled(network, params, inputs, labels)
    assert all(float(jnp.linalg.norm(x)) > 0 for x in jax.tree.leaves(expected))
    assert relative_error(exact, expected) < 1e-9


@pytest.mark.thorough
def test_recurrent_back_propagation_tolerates_what_it_says():
    """A part of the state: its distance from the settled one, or its last movement."""
    network, args, _ = problem("dense")

    @functools.partial(jax.jit, static_argnums=1)
    def report(tolerance, num_steps):
        rule = energy.recurrent_back_propagation(
            network, COST, SYNCHRONOUS(num_steps), tolerance=tolerance
        )
        return rule.value_and_grad(*args, None)[0][1]

    settled, early = report(1.0, 1000), report(1.0, 25)
    gaps = [x - y for x, y in zip(settled.state, early.state, strict=True)]
    size = lambda units: np.sqrt(np.mean(np.concatenate(units, axis=1) ** 2))
    ratio = max(size(gaps), float(early.free_residual)) / size(early.state)
    assert bool(report(1.1 * ratio, 25).converged)
    assert not bool(report(0.9 * ratio, 25).converged)


@pytest.mark.thorough
def test_contrast_is_hebbian():
    network, (params, inputs, labels), _ = problem("dense")
    beta, free, nudged = 0.2, SYNCHRONOUS(20), SYNCHRONOUS(3)
    rule = make_ep(network, COST, free, nudged, beta=beta, nudging="positive")

    @jax.jit
    def both(params):
        (value, aux), grads = rule.value_and_grad(params, inputs, labels, None)
        given = (params, inputs, labels)
        pushed = phases.relax(
            network, nudged, given, aux.state, cost=COST, beta=beta
        ).state
        return value, aux, grads, pushed

    value, aux, grads, second = both(params)
    first = aux.state
    slopes = []
    for state in (first, second):
        below = [inputs, *state[:-1]]
        slopes.append([-s.T @ t for s, t in zip(below, state, strict=True)])
    scale = beta * len(inputs)
    for grad, before, after in zip(grads, *slopes, strict=True):
        expected = (after - before) / scale
        np.testing.assert_allclose(grad["kernel"], expected, atol=1e-13)
    for grad, before, after in zip(grads, first, second, strict=True):
        expected = -jnp.sum(after - before, axis=0) / scale
        np.testing.assert_allclose(grad["bias"], expected, atol=1e-13)
    np.testing.assert_array_equal(aux.outputs, first[-1])
    errors = first[-1] - jax.nn.one_hot(labels, CLASSES)
    np.testing.assert_allclose(value, jnp.sum(errors**2) / 2 / len(inputs), rtol=1e-13)


@pytest.mark.thorough
def test_random_sign_is_one_of_the_two():
    network, args, _ = problem("dense")
    few = SYNCHRONOUS(2)
    make = lambda nudging: make_ep(network, COST, few, beta=0.3, nudging=nudging)
    run = lambda nudging, key: make(nudging).value_and_grad(*args, key)[1]
    sides = jax.jit(lambda: [run("positive", None), run("negative", None)])()
    drawn_sign = jax.jit(functools.partial(run, "random"))
    seen = []
    for seed in range(20):
        found = drawn_sign(jax.random.key(seed))
        errors = [relative_error(found, side) for side in sides]
        assert min(errors) < 1e-13 < 1e-3 < max(errors)
        seen.append(errors[0] < errors[1])
    assert 4 < sum(seen) < 16


@pytest.mark.thorough
def test_few_nudged_sweeps_are_truncated_back_propagation_through_time():
    """From a settled state K of them, each synchronous: for every K."""
    network, args, found = settled("dense"), problem("dense")[1], {}

    @jax.jit
    def grads():
        for k in (1, 2, 5, 10):
            rules = (
                make_ep(network, COST, ONE, SYNCHRONOUS(k), beta=1e-5),
                energy.truncated_back_propagation_through_time(
                    network, COST, num_steps=k, truncation=k
                ),
            )
            found[k] = [rule.value_and_grad(*args, None)[1] for rule in rules]
        return found

    found = grads()
    for contrast, exact in found.values():
        assert relative_error(contrast, exact) < 1e-8
    # The transient is not yet the gradient.
    assert relative_error(found[2][1], problem("dense")[2][1]) > 0.1


@pytest.mark.parametrize(
    ("rule", "bound"),
    [
        (hypergradients.implicit(), 1e-6),
        (hypergradients.nudged(1e-3, linearised=True), 1e-4),
    ],
    ids=["implicit", "nudged"],
)
def test_hypergradients_of_the_core(rule, bound):
    network, args, ((value, _), exact) = problem("dense")
    solver = energy.state_solver(network, max_steps=150)
    made = energy.by_hypergradient("by_core", network, COST, solver, rule)
    (found, aux), grads = jax.jit(made.value_and_grad)(*args, None)
    assert relative_error(grads, exact) < bound
    np.testing.assert_allclose(found, value, rtol=1e-9)
    assert float(aux.free_residual) < 1e-9
    assert made.name == "by_core"


def test_state_solver_sees_linear_nudges_only():
    network, args, _ = problem("dense")
    made = energy.by_hypergradient(
        "full",
        network,
        COST,
        energy.state_solver(network),
        hypergradients.nudged(1e-3, linearised=False),
    )
    with pytest.raises(ValueError, match="state_solver sees linear nudges only"):
        jax.eval_shape(made.value_and_grad, *args, None)


def test_says_whether_it_converged():
    network, args, _ = problem("dense")
    converged = lambda rule, args: jax.jit(rule.value_and_grad)(*args, None)[0][1]
    settled = make_ep(network, COST, SETTLE, beta=0.1)
    aux = converged(settled, args)
    assert bool(aux.converged)
    assert float(aux.displacement) > 1e-3
    assert float(aux.free_residual) < 1e-9
    assert float(aux.nudged_residual) < 1e-9
    for phase in ((SYNCHRONOUS(1), SETTLE), (SETTLE, SYNCHRONOUS(1))):
        assert not bool(converged(make_ep(network, COST, *phase), args).converged)
    broken = (args[0], args[1].at[0, 0].set(jnp.nan), args[2])
    assert not bool(converged(settled, broken).converged)


def test_cross_entropy():
    args, network = problem("dense")[1], settled("dense")
    cost = energy.cross_entropy()
    exact = gradient(energy.recurrent_back_propagation(network, cost, ONE), args)
    grads = jax.jit(
        lambda beta: make_ep(network, cost, ONE, SETTLE, beta=beta).value_and_grad(
            *args, None
        )[1]
    )
    errors = [relative_error(grads(beta), exact) for beta in BETAS]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(BETAS))
    # As above.
    np.testing.assert_allclose(slopes, 2, atol=0.1)


def test_beta_is_per_sample():
    network, (params, inputs, labels), _ = problem("dense")
    rule = make_ep(network, COST, SYNCHRONOUS(2), beta=0.3)
    once = gradient(rule, (params, inputs, labels))
    args = (params, jnp.tile(inputs, (2, 1)), jnp.tile(labels, 2))
    assert relative_error(gradient(rule, args), once) < 1e-13


NETWORK = hopfield()[0]
RELU = networks.hopfield(energy.feedforward([Dense(3), Dense(CLASSES)], "relu"))
make_hep = energy.holomorphic_equilibrium_propagation


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (make_ep, {"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        (make_ep, {"beta": -0.1}, "beta must be positive and finite, got -0.1"),
        (make_ep, {"beta": float("inf")}, "beta must be positive and finite, got inf"),
        (make_ep, {"beta": 1.0}, "unbounded below.* Expected beta < 1.0, got 1.0"),
        (make_ep, {"beta": 2.0, "nudging": "negative"}, "unbounded below"),
        (make_ep, {"beta": 2.0, "nudging": "random"}, "unbounded below"),
        (
            make_ep,
            {"nudging": "both"},
            "must be one of positive, negative, random, centred, got 'both'",
        ),
        (make_hep, {"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        (make_hep, {"beta": 1.0}, "unbounded below"),
        (make_hep, {"num_points": 2.5}, "must be an integer >= 2, got 2.5"),
        (make_hep, {"num_points": 1}, "must be an integer >= 2, got 1"),
    ],
)
def test_what_is_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(NETWORK, COST, SETTLE, **options)


def test_positive_nudges_may_be_large():
    make_ep(NETWORK, COST, SETTLE, beta=2.0, nudging="positive")
    make_ep(NETWORK, energy.cross_entropy(), SETTLE, beta=2.0)


def test_truncation_lies_within_the_steps():
    for truncation in (0, 6):
        with pytest.raises(
            ValueError, match=r"truncation must lie in \[1, num_steps=5"
        ):
            energy.truncated_back_propagation_through_time(
                NETWORK, COST, num_steps=5, truncation=truncation
            )


def test_chance_needs_a_key():
    _, args, _ = problem("dense")
    call = lambda rule: jax.eval_shape(rule.value_and_grad, *args, None)
    with pytest.raises(ValueError, match="a random sign needs a key"):
        call(make_ep(NETWORK, COST, sweeps(1), nudging="random"))
    for phase in ((sweeps(1, noise=0.1), sweeps(1)), (sweeps(1), sweeps(1, noise=0.1))):
        with pytest.raises(ValueError, match="state noise needs a key: call rule"):
            call(make_ep(NETWORK, COST, *phase))


def test_holomorphic_needs_analytic_operations():
    with pytest.raises(
        ValueError, match="needs an energy and a cost that are analytic"
    ):
        make_hep(RELU, COST, SETTLE)
    absolute = energy.Cost("absolute", lambda o, y: jnp.sum(jnp.abs(o), axis=1))
    with pytest.raises(
        ValueError, match="needs an energy and a cost that are analytic"
    ):
        make_hep(NETWORK, absolute, SETTLE)
    pool = lambda s: linen.max_pool(s, (2, 2), (2, 2))
    flat = lambda s: s.reshape(len(s), -1)
    chain = energy.feedforward([Conv(2, (3, 3)), [pool, flat, Dense(CLASSES)]], "tanh")
    rule = make_hep(networks.hopfield(chain), COST, sweeps(1))
    inputs, labels = data((2, 4, 4, 1))
    shapes = jax.eval_shape(rule.init, KEY, inputs)
    with pytest.raises(
        ValueError, match=r"reduce_window_max.* average in place of max"
    ):
        jax.eval_shape(rule.value_and_grad, shapes, inputs, labels, None)
