"""Predictive coding and its kin, lifted networks, and coupled learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import CLASSES, KEY, Dense, data, dense, relative_error
from flax import linen

from bilevel import energy
from bilevel.energy import networks, phases
from bilevel.energy.relaxations import damped_sweeps, sweeps

COST = energy.squared_error()
INPUTS, LABELS = data((4, 8))
BETAS = 0.02 * 0.5 ** np.arange(3)


def drawn(widths, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    params, below = [], INPUTS.shape[1]
    for width in widths:
        kernel = scale * rng.normal(size=(below, width)) / below**0.5
        bias = scale * rng.normal(size=width) / 3
        params.append({"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)})
        below = width
    return params


WIDTHS = (6, 5, CLASSES)
CHAIN = energy.feedforward([Dense(width) for width in WIDTHS], "tanh")
PARAMS = drawn(WIDTHS)


def gradient(rule, params=PARAMS):
    return jax.jit(rule.value_and_grad)(params, INPUTS, LABELS, None)[1]


def slopes(make, exact, params=PARAMS):
    """Of the relative errors of `make(beta)`."""
    grads = jax.jit(
        lambda beta: make(beta).value_and_grad(params, INPUTS, LABELS, None)[1]
    )
    errors = [relative_error(grads(beta), exact) for beta in BETAS]
    return np.diff(np.log(errors)) / np.diff(np.log(BETAS))


@pytest.mark.parametrize("cost", [COST, energy.cross_entropy()], ids=lambda c: c.name)
def test_z_il_is_back_propagation(cost):
    exact = gradient(energy.back_propagation(CHAIN, cost))
    assert relative_error(gradient(energy.z_il(CHAIN, cost)), exact) < 1e-13


def test_z_il_costs_as_much_as_back_propagation_at_every_depth():
    """E9: lines of the program."""

    def lines(make, num_blocks):
        chain = energy.feedforward([Dense(8) for _ in range(num_blocks)], "tanh")
        params = jax.eval_shape(chain.init, KEY, INPUTS)
        targets = jnp.zeros((len(INPUTS), 8))
        rule = jax.jit(make(chain, COST).value_and_grad)
        return len(rule.lower(params, INPUTS, targets, None).as_text().splitlines())

    for num_blocks in (4, 16):
        ratio = lines(energy.z_il, num_blocks)
        assert ratio < 1.6 * lines(energy.back_propagation, num_blocks)


def test_predictive_coding_approaches_back_propagation():
    exact = gradient(energy.back_propagation(CHAIN, COST))
    settle = sweeps(200, order="synchronous", step_size=0.3)
    make = lambda beta: energy.predictive_coding(CHAIN, COST, settle, beta=beta)
    np.testing.assert_allclose(slopes(make, exact), 1, atol=0.1)


def total(params, state):
    """E + C by hand, for the chain of tanh units."""
    value, below = 0.0, INPUTS
    for own, s in zip(params, [*state, None], strict=True):
        a = below @ own["kernel"] + own["bias"][None]
        value += jnp.sum(COST.value(a, LABELS)) if s is None else 0.0
        value += 0.0 if s is None else jnp.sum((s - jnp.tanh(a)) ** 2) / 2
        below = s
    return value


TOTAL = jax.jit(jax.grad(total, argnums=(0, 1)))


def forward():
    states, below = [], INPUTS
    for own in PARAMS[:-1]:
        below = jnp.tanh(below @ own["kernel"] + own["bias"][None])
        states.append(below)
    return states


def test_predictive_coding_descends_the_energy_from_the_forward_pass():
    state = forward()
    for _ in range(8):
        moves = TOTAL(PARAMS, state)[1]
        state = [s - 0.1 * move for s, move in zip(state, moves, strict=True)]
    expected = jax.tree.map(lambda g: g / len(INPUTS), TOTAL(PARAMS, state)[0])
    assert relative_error(gradient(energy.predictive_coding(CHAIN, COST)), expected) < (
        1e-13
    )


@pytest.mark.parametrize("num_steps", [1, 4])
def test_incremental_predictive_coding_is_the_published_loop(num_steps):
    rate, size = 0.05, 0.4
    params, state = PARAMS, forward()
    for _ in range(num_steps):
        grads, moves = TOTAL(params, state)
        step = lambda p, g: p - rate * g / len(INPUTS)
        params = jax.tree.map(step, params, grads)
        state = [s - size * move for s, move in zip(state, moves, strict=True)]
    way = jax.tree.map(lambda a, b: (a - b) / rate, PARAMS, params)
    rule = energy.incremental_predictive_coding(
        CHAIN, COST, rate=rate, num_steps=num_steps, step_size=size
    )
    found = gradient(rule)
    sizes = jax.tree.map(lambda x: float(jnp.max(jnp.abs(x))), (found, way))
    gap = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), found, way)
    assert max(jax.tree.leaves(gap)) < 1e-12 * max(jax.tree.leaves(sizes))
    if num_steps == 1:  # where only the cost's term is not zero
        assert all(not g.any() for own in found[:-1] for g in own.values())


def test_lpom_approaches_back_propagation():
    exact = gradient(energy.back_propagation(CHAIN, COST))
    make = lambda beta: energy.lpom(
        CHAIN, COST, beta=beta, clamped=False, num_sweeps=60, num_inner=1
    )
    np.testing.assert_allclose(slopes(make, exact), 1, atol=0.1)


def test_lpom_with_clamped_outputs_weights_the_slope_of_the_cost():
    """By S^-1, S = 1 + sum over hidden k of J_k diag(f'_k) J_k^T: coupled learning."""

    @jax.jit
    def weighted():
        def outputs(inputs, moved):
            below = inputs
            for own, move in zip(PARAMS, [*moved, None], strict=True):
                a = below @ own["kernel"] + own["bias"]
                below = a if move is None else jnp.tanh(a) + move / jnp.cosh(a)
            return below

        def one(inputs, label):
            moved = [jnp.zeros(n) for n in WIDTHS[:-1]]
            o = outputs(inputs, moved)
            jacobians = jax.jacobian(outputs, argnums=1)(inputs, moved)
            s = jnp.eye(CLASSES) + sum(j @ j.T for j in jacobians)
            return jnp.linalg.solve(s, o - jax.nn.one_hot(label, CLASSES))

        return jax.vmap(one)(INPUTS, LABELS)

    linear = energy.Cost("linear", lambda o, c: jnp.sum(o * c, axis=1))
    rule = energy.back_propagation(CHAIN, linear)
    limit = jax.jit(rule.value_and_grad)(PARAMS, INPUTS, weighted(), None)[1]
    make = lambda beta: energy.lpom(CHAIN, COST, beta=beta, num_sweeps=60, num_inner=1)
    np.testing.assert_allclose(slopes(make, limit), 1, atol=0.1)
    assert relative_error(limit, gradient(energy.back_propagation(CHAIN, COST))) > 0.1


@pytest.mark.parametrize(("scale", "expected"), [(0.5, True), (4.0, False)])
def test_incremental_predictive_coding_says_whether_it_descends(scale, expected):
    chain, shape = dense(widths=(6, 5))
    inputs, labels = data(shape)
    params = jax.tree.map(lambda x: scale * x, chain.init(KEY, inputs))
    rule = energy.incremental_predictive_coding(chain, COST)
    (_, aux), _ = jax.jit(rule.value_and_grad)(params, inputs, labels, None)
    assert bool(aux.converged) is expected
    if expected:
        assert 0 < float(aux.displacement) < 1


@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "tanh"])
@pytest.mark.thinned(3)
def test_lpom_is_the_published_descent(activation):
    """Proximal steps, of which those with tanh go a part of the way."""
    f = {
        "relu": lambda a: np.maximum(a, 0),
        "hard_sigmoid": lambda a: np.clip(a, 0, 1),
        "tanh": np.tanh,
    }[activation]
    chain = energy.feedforward([Dense(width) for width in WIDTHS], activation)
    params, beta = drawn(WIDTHS, 3.0), 0.5
    weights = [np.asarray(own["kernel"]) for own in params]
    inputs = np.asarray(INPUTS)
    energy_of = jax.jit(networks.lifted(chain).energy)

    def drive(k):
        below = state[k - 1] if k > 0 else inputs
        return below @ weights[k] + np.asarray(params[k]["bias"])

    def gap(k):
        return state[k] - (drive(k) if k == 2 else f(drive(k)))

    state = [np.asarray(s) for s in networks.lifted(chain).start(params, INPUTS)]
    state[2] = state[2] - beta * (state[2] - np.eye(CLASSES)[np.asarray(LABELS)])
    energies = [float(energy_of(params, state, INPUTS))]
    for k in 2 * (1, 1, 1, 0, 0, 0):
        l = (1.2 * np.linalg.norm(weights[k + 1], 2) ** 2 - 1) / 2
        assert l > 1
        to = drive(k) + gap(k + 1) @ weights[k + 1].T
        part = lambda new, old, l=l: (new + l * old) / (1 + l)
        if activation == "tanh":
            state[k] = part(f(to), state[k])
        else:
            state[k] = f(part(to, state[k]))
        energies.append(float(energy_of(params, state, INPUTS)))
    assert np.all(np.diff(energies) <= 1e-12 * energies[0])
    rule = energy.lpom(chain, COST, beta=beta, num_sweeps=2, num_inner=3)
    grads = gradient(rule, params)
    for k, below in enumerate([inputs, *state[:-1]]):
        expected = -below.T @ gap(k) / (beta * len(inputs))
        atol = 1e-4 * np.max(np.abs(expected))  # power iteration falls short
        np.testing.assert_allclose(grads[k]["kernel"], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.thorough
def test_lpom_with_pooling_approaches_back_propagation(seed):
    """With the norm of the first example's maxima it swings, and seems to settle."""
    init = linen.initializers.variance_scaling(1.0, "fan_in", "normal")
    conv = lambda n: linen.Conv(n, (3, 3), param_dtype=float, kernel_init=init)
    pool = lambda s: linen.max_pool(s, (2, 2), (2, 2))
    flat = lambda s: s.reshape(len(s), -1)
    top = linen.Dense(CLASSES, param_dtype=float, kernel_init=init)
    chain = energy.feedforward([[conv(6), pool], [conv(8), pool], [flat, top]], "relu")
    inputs, labels = data((6, 8, 8, 2))
    params = chain.init(jax.random.key(seed), inputs)
    run = lambda rule: jax.jit(rule.value_and_grad)(params, inputs, labels, None)
    _, exact = run(energy.back_propagation(chain, COST))
    rule = energy.lpom(
        chain, COST, beta=1e-2, clamped=False, num_sweeps=150, num_inner=2
    )
    (_, aux), grads = run(rule)
    assert aux.converged
    assert relative_error(grads, exact) < 0.1


def test_lpom_does_not_increase_its_energy():
    """With weights under which steps of size 1 would."""
    chain = energy.feedforward([Dense(width) for width in WIDTHS], "relu")
    network, params = networks.lifted(chain), drawn(WIDTHS, 3.0)
    held = {2: jax.nn.one_hot(LABELS, CLASSES, dtype=INPUTS.dtype)}
    order = [[2], [1], [1], [0], [0]]
    norms = [np.linalg.norm(own["kernel"], 2) for own in params]
    assert min(norms) > 2
    damped = [1 / (1 + max(0, (float(norm) ** 2 - 1) / 2)) for norm in norms[1:]]

    @jax.jit
    def sweep(state, sizes):
        given = phases.Data(params, INPUTS, LABELS)
        one = damped_sweeps(1, order, sizes)
        state = phases.relax(network, one, given, state, held=held).state
        return state, network.energy(params, state, INPUTS)

    def energies(sizes):
        state = network.start(params, INPUTS)
        found = []
        for _ in range(15):
            state, value = sweep(state, sizes)
            found.append(float(value))
        return np.array(found)

    falling = energies([*damped, 1.0])
    assert np.all(np.diff(falling) <= 1e-12 * falling[0])
    assert falling[-1] < 0.9 * falling[0]
    assert np.any(np.diff(energies([1.0, 1.0, 1.0])) > 0.01)


def linear_network():
    """One with the identity: its state, and the gradient of <o, c> for any c."""
    widths = (4, 3, CLASSES)
    params = drawn(widths, 0.4, seed=1)
    kernels = [np.asarray(own["kernel"]) for own in params]
    first, second, third = slice(0, 4), slice(4, 7), slice(7, 12)
    hessian = np.eye(12)
    hessian[first, second] = -kernels[1]
    hessian[second, third] = -kernels[2]
    hessian = np.triu(hessian) + np.triu(hessian, 1).T
    drive = np.concatenate([own["bias"] for own in params]) + np.zeros((4, 1))
    drive[:, first] += np.asarray(INPUTS) @ kernels[0]
    state = np.linalg.solve(hessian, drive.T).T
    layers = [first, second, third]

    def pull(cotangent):
        padded = np.concatenate([np.zeros((4, 7)), cotangent], axis=1)
        adjoint = np.linalg.solve(hessian, padded.T).T
        grads = []
        for k, own in enumerate(layers):
            below = np.asarray(INPUTS) if k == 0 else state[:, layers[k - 1]]
            kernel = below.T @ adjoint[:, own]
            if k > 0:
                kernel = kernel + adjoint[:, layers[k - 1]].T @ state[:, own]
            grads.append({"kernel": kernel, "bias": adjoint[:, own].sum(0)})
        return jax.tree.map(lambda g: jnp.asarray(g / len(INPUTS)), grads)

    slope = state[:, third] - np.eye(CLASSES)[np.asarray(LABELS)]
    hidden = slice(0, 7)
    coupling = hessian[hidden, third]
    inner = np.linalg.solve(hessian[hidden, hidden], coupling)
    stiffness = hessian[third, third] - coupling.T @ inner
    chain = energy.feedforward([Dense(width) for width in widths], "identity")
    return networks.hopfield(chain), params, pull, slope, stiffness


def test_coupled_learning_is_the_pull_back_of_the_force():
    network, params, pull, slope, stiffness = linear_network()
    settle = sweeps(400, order="synchronous")
    cost = pull(slope)
    weighted = pull(slope @ stiffness)
    # States are linear in beta, and the update quadratic in the states.
    rule = energy.coupled_learning(network, COST, settle, beta=0.3)
    found = gradient(rule, params)
    assert relative_error(found, weighted) < 1e-10
    assert relative_error(found, cost) > 0.1
    make = lambda beta: energy.coupled_learning(
        network, COST, settle, beta=beta, nudging="positive"
    )
    np.testing.assert_allclose(slopes(make, weighted, params), 1, atol=0.05)


@pytest.mark.thorough
def test_contrastive_hebbian_learning_clamps_the_targets():
    network, params, *_ = linear_network()
    free, clamped = (sweeps(n, order="synchronous") for n in (20, 6))

    @jax.jit
    def both():
        rules = (
            energy.contrastive_hebbian_learning(network, COST, free, clamped),
            energy.coupled_learning(
                network, COST, free, clamped, beta=1.0, nudging="positive"
            ),
        )
        found = [rule.value_and_grad(params, INPUTS, LABELS, None) for rule in rules]
        given = phases.Data(params, INPUTS, LABELS)
        start = found[0][0][1].state
        held = {2: jax.nn.one_hot(LABELS, CLASSES, dtype=INPUTS.dtype)}
        second = phases.relax(network, clamped, given, start, held=held).state
        gap = lambda p: (
            network.energy(p, second, INPUTS) - network.energy(p, start, INPUTS)
        )
        return found, jax.grad(gap)(params)

    (((value, aux), found), ((other_value, _), other)), expected = both()
    assert relative_error(found, other) == 0
    assert float(value) == float(other_value)
    expected = jax.tree.map(lambda g: g / len(INPUTS), expected)
    assert relative_error(found, expected) < 1e-12
    np.testing.assert_array_equal(aux.outputs, aux.state[-1])


GELU = energy.feedforward([Dense(3), Dense(2)], "gelu")
SHALLOW = energy.feedforward([Dense(2)], "tanh")
NO_OUTPUT = networks.predictive(CHAIN)
HOPFIELD = networks.hopfield(CHAIN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: energy.predictive_coding(CHAIN, COST, beta=0.0),
            "beta must be .* 0.0",
        ),
        (lambda: energy.predictive_coding(SHALLOW, COST), "expected a hidden layer"),
        (lambda: energy.z_il(SHALLOW, COST), "predictive: expected a hidden layer"),
        (
            lambda: energy.incremental_predictive_coding(SHALLOW, COST),
            "expected a hidden layer",
        ),
        (
            lambda: energy.incremental_predictive_coding(CHAIN, COST, rate=0.0),
            "rate, step_size and num_steps must be positive, got 0.0, 0.5, 8",
        ),
        (
            lambda: energy.incremental_predictive_coding(CHAIN, COST, num_steps=0),
            "must be positive, got 0.01, 0.5, 0",
        ),
        (
            lambda: energy.incremental_predictive_coding(CHAIN, COST, step_size=-1.0),
            "must be positive, got 0.01, -1.0, 8",
        ),
        (lambda: energy.lpom(GELU, COST), "lifted: the activation 'gelu'"),
        (lambda: energy.lpom(CHAIN, COST, beta=-1.0), "lpom: beta must be positive"),
        (
            lambda: energy.lpom(CHAIN, COST, num_sweeps=0),
            "num_sweeps and num_inner must be at least 1, got 0, 5",
        ),
        (lambda: energy.lpom(CHAIN, COST, num_inner=0), "at least 1, got 2, 0"),
        (
            lambda: energy.coupled_learning(NO_OUTPUT, COST, sweeps(1)),
            "coupled_learning clamps the outputs, .* no layer of their own",
        ),
        (
            lambda: energy.coupled_learning(HOPFIELD, COST, sweeps(1), beta=0.0),
            "coupled_learning: beta must be positive and finite, got 0.0",
        ),
        (
            lambda: energy.coupled_learning(
                HOPFIELD, COST, sweeps(1), nudging="random"
            ),
            "nudging must be positive, negative or centred, got 'random'",
        ),
        (
            lambda: energy.contrastive_hebbian_learning(NO_OUTPUT, COST, sweeps(1)),
            "contrastive_hebbian_learning clamps the outputs",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_needs_a_key():
    rule = energy.predictive_coding(CHAIN, COST, sweeps(1, noise=0.1))
    with pytest.raises(ValueError, match="state noise needs a key"):
        jax.eval_shape(rule.value_and_grad, PARAMS, INPUTS, LABELS, None)
    jax.eval_shape(rule.value_and_grad, PARAMS, INPUTS, LABELS, KEY)


def test_one_step_of_incremental_predictive_coding_may_be_too_large():
    rule = energy.incremental_predictive_coding(CHAIN, COST, num_steps=1, step_size=1e6)
    (_, aux), _ = jax.jit(rule.value_and_grad)(PARAMS, INPUTS, LABELS, None)
    assert not aux.converged
