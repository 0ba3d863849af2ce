"""Networks: their states against linear algebra, and responses that are argmins."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import KEY, Conv, Dense
from flax import linen

from bilevel import energy
from bilevel.energy import networks, phases
from bilevel.energy.networks.base import keys_of
from bilevel.energy.relaxations import sweeps

COST = energy.squared_error()
BATCH, INPUTS, WIDTHS = 3, 5, (4, 3, 2)


def drawn(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def random_params(network, inputs, scale=0.3, seed=1):
    """Biases that are not zero, either."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, KEY, inputs)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape)), shapes)


def chain_of(activation, widths=WIDTHS):
    return energy.feedforward([Dense(width) for width in widths], activation)


def kernels(params):
    return [np.asarray(one["kernel"]) for one in params]


def biases(params):
    return [np.asarray(one["bias"]) for one in params]


def settled(network, params, inputs, num_steps=600):
    sync = sweeps(num_steps, order="synchronous")  # quick to compile
    relax = lambda p: phases.relax_free(network, sync, p, inputs).state
    return jax.jit(relax)(params)


def close(found, expected, tolerance=1e-12):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


INPUT = drawn((BATCH, INPUTS))


def test_hopfield_state_solves_the_linear_system():
    network = networks.hopfield(chain_of("identity"))
    params = random_params(network, INPUT, 0.2)
    starts = np.cumsum([0, *WIDTHS])
    system, drive = np.eye(sum(WIDTHS)), np.zeros((BATCH, sum(WIDTHS)))
    at = [slice(a, b) for a, b in itertools.pairwise(starts)]
    for k, (kernel, bias) in enumerate(
        zip(kernels(params), biases(params), strict=True)
    ):
        drive[:, at[k]] = bias[None] + (np.asarray(INPUT) @ kernel if k == 0 else 0)
        if k > 0:
            system[at[k], at[k - 1]] = -kernel.T
            system[at[k - 1], at[k]] = -kernel
    expected = np.linalg.solve(system, drive.T).T
    state = settled(network, params, INPUT)
    np.testing.assert_allclose(np.concatenate(state, 1), expected, rtol=1e-12)


MIN, MAX = (
    {"tanh": -0.999, "hard_sigmoid": 0.0, "relu": 0.0},
    {"tanh": 0.999, "hard_sigmoid": 1.0, "relu": np.inf},
)


@pytest.mark.parametrize("activation", ["tanh", "hard_sigmoid", "relu"])
def test_response_is_each_layers_minimiser(activation):
    """Of the energy with a force in two layers and a stiffness in the last."""
    network = networks.hopfield(chain_of(activation))
    params = random_params(network, INPUT)
    clip = lambda x: np.clip(x, MIN[activation], MAX[activation])
    state = [jnp.asarray(clip(drawn((BATCH, n), 3 + k))) for k, n in enumerate(WIDTHS)]
    state[-1] = drawn((BATCH, 2), 7)  # linear
    force = {0: drawn((BATCH, 4), 8), 2: drawn((BATCH, 2), 9)}
    stiffness = {2: 0.7}
    found = network.respond(params, state, INPUT, force, stiffness)
    rng = np.random.default_rng(4)

    @jax.jit
    def objective(layers):
        def one(layer):
            total = network.energy(params, layer, INPUT)
            for key, push in force.items():
                total = total + jnp.sum(push * (layer[key] - state[key]))
            return total + 0.35 * jnp.sum((layer[2] - state[2]) ** 2)

        return jax.vmap(one)(layers)

    for key in range(3):
        steps = np.array([1e-3, 1e-2, 0.1, 1.0]).repeat(25).reshape(-1, 1, 1)
        tried = found[key][None] + steps * rng.normal(size=(100, *found[key].shape))
        tried = np.concatenate([found[key][None], tried if key == 2 else clip(tried)])
        layers = [
            jnp.asarray(tried) if k == key else jnp.broadcast_to(s, (101, *s.shape))
            for k, s in enumerate(state)
        ]
        values = np.asarray(objective(layers))
        assert np.all(values[1:] > values[0]), key


def test_settled_state_has_no_energy_gradient():
    network = networks.hopfield(chain_of("tanh"), "shifted_sigmoid")
    params = random_params(network, INPUT)
    state = settled(network, params, INPUT)
    slopes = jax.jit(jax.grad(network.energy, argnums=1))(params, state, INPUT)
    assert max(float(jnp.max(jnp.abs(s))) for s in slopes) < 1e-12
    assert all(float(jnp.std(s)) > 0.01 for s in state)


def test_convolutions_and_pooling_act_in_both_directions():
    pool = lambda s: linen.avg_pool(s, (2, 2), (2, 2))
    blocks = [
        Conv(3, (3, 3)),
        [Conv(2, (3, 3)), pool],
        [lambda s: s.reshape(len(s), -1), Dense(2)],
    ]
    chain = energy.feedforward(blocks, "tanh")
    network = networks.hopfield(chain)
    inputs = drawn((2, 4, 4, 2))
    params = random_params(network, inputs)

    @jax.jit
    def both():
        start = network.start(params, inputs)
        state = [0.1 + jnp.cos(jnp.arange(s.size)).reshape(s.shape) for s in start]
        found = network.respond(params, state, inputs, {}, {})
        # By hand: W^T of the convolution is that with the flipped, swapped kernel, and
        # that of average pooling gives each of four pixels a quarter.
        kernel, dense = params[1]["kernel"], params[2]["kernel"]
        spread = jnp.repeat(jnp.repeat(state[1] / 4, 2, axis=1), 2, axis=2)
        flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        down = jax.lax.conv_general_dilated(
            spread, flipped, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        up = chain.blocks[1](params[1], state[0])
        back = (state[2] @ dense.T).reshape(state[1].shape)
        expected = [
            jnp.tanh(chain.blocks[0](params[0], inputs) + down),
            jnp.tanh(up + back),
            chain.blocks[2](params[2], state[1]),
        ]
        return found, expected

    close(*both())


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_lifted_energy_is_zero_at_the_forward_pass_only(activation):
    network = networks.lifted(chain_of(activation))
    params = random_params(network, INPUT, 0.8)
    f = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0)}[activation]
    clip = lambda x: np.clip(x, MIN[activation], MAX[activation])
    states = [clip(drawn((10, BATCH, n), n)) for n in WIDTHS[:-1]]
    states.append(drawn((10, BATCH, WIDTHS[-1]), 9))

    @jax.jit
    def everything(states):
        value = lambda state: network.energy(params, state, INPUT)
        one = [s[0] for s in states]
        return (
            value(network.start(params, INPUT)),
            jax.vmap(value)(states),
            one,
            jax.grad(network.coupling)(params, one, INPUT),
            network.respond(params, one, INPUT, {}, {}),
        )

    zero, values, state, grads, response = everything(states)
    assert abs(float(zero)) < 1e-13
    assert np.all(values > 0.1)
    below = [np.asarray(INPUT), *(np.asarray(s) for s in state[:-1])]
    drives = [
        s @ w + b
        for s, w, b in zip(below, kernels(params), biases(params), strict=True)
    ]
    found = [f(drives[0]), f(drives[1]), drives[2]]
    gaps = [x - np.asarray(s) for x, s in zip(found, state, strict=True)]
    for grad, s, gap in zip(grads, below, gaps, strict=True):
        close([grad["kernel"], grad["bias"]], [s.T @ gap, gap.sum(0)])
    back = [gap @ w.T for gap, w in zip(gaps[1:], kernels(params)[1:], strict=True)]
    expected = [f(drives[0] - back[0]), f(drives[1] - back[1]), drives[2]]
    close(response, expected)


def test_predictive_energy_is_that_of_the_errors():
    chain = chain_of("gelu")
    network = networks.predictive(chain)
    params = random_params(network, INPUT)
    state = [drawn((BATCH, n), n) for n in WIDTHS[:-1]]

    @jax.jit
    def everything():
        forward = network.start(params, INPUT)
        first = jax.nn.gelu(INPUT @ params[0]["kernel"] + params[0]["bias"][None])
        second = jax.nn.gelu(state[0] @ params[1]["kernel"] + params[1]["bias"][None])
        errors = jnp.sum((state[0] - first) ** 2) + jnp.sum((state[1] - second) ** 2)
        value, slopes = jax.value_and_grad(network.energy, (0, 1))(params, state, INPUT)
        steps = [s - slope for s, slope in zip(state, slopes[1], strict=True)]
        return (
            [
                network.energy(params, forward, INPUT),
                network.outputs(params, forward),
                value,
                # One step of size 1; and the coupling has the energy's derivative.
                *network.respond(params, state, INPUT, {}, {}),
                *jax.tree.leaves(jax.grad(network.coupling)(params, state, INPUT)),
            ],
            [
                jnp.zeros(()),
                chain.apply(params, INPUT),
                errors / 2,
                *steps,
                *jax.tree.leaves(slopes[0]),
            ],
        )

    close(*everything())


@pytest.mark.parametrize("free_output", [False, True])
def test_least_energy_of_a_deep_linear_network(free_output):
    """r^T S^-1 r / 2: of the prediction errors with the cost as the output's."""
    network = networks.predictive(chain_of("identity"), free_output=free_output)
    params = random_params(network, INPUT)
    targets = drawn((BATCH, 2), 5)
    data = phases.Data(params, INPUT, targets)

    @jax.jit
    def least():
        start = network.start(params, INPUT)
        settle = sweeps(800, order="synchronous", step_size=0.5)
        state = phases.relax(network, settle, data, start, cost=COST, beta=1.0).state
        outputs = network.outputs(params, state)
        costs = jnp.sum(COST.value(outputs, targets))
        return network.energy(params, state, INPUT) + costs, start

    value, start = least()
    w = [kernel.T for kernel in kernels(params)]
    top, both = w[2], w[2] @ w[1]
    # A free output has an error of its own, with precision 1, beside the cost's.
    covariance = (1 + free_output) * np.eye(2) + top @ top.T + both @ both.T
    residual = np.asarray(targets - network.outputs(params, start))
    expected = np.sum(residual * np.linalg.solve(covariance, residual.T).T) / 2
    np.testing.assert_allclose(float(value), expected, rtol=1e-12)


SIZES, GAIN = [2, 4, 4, 2], 6.0


@functools.cache
def circuit():
    network = networks.resistive(SIZES, gain=GAIN)
    inputs = drawn((2, 2))
    params = network.init(KEY, inputs)
    sides = jnp.array([1.0, 1.0, -1.0, -1.0])  # of the diodes
    params["biases"] = [0.2 * sides, 0.2 * sides, 0.5 * drawn(2, 4)]
    return network, inputs, params, settled(network, params, inputs, 500)


def test_resistive_state_obeys_kirchhoffs_law():
    """At nodes whose diodes block; the others are linear, or held by their diode."""
    _, inputs, params, state = circuit()
    g = [np.asarray(one) for one in params["conductances"]]
    num_held = 0
    for example, u in enumerate(np.asarray(inputs)):
        v = [GAIN * np.concatenate([u, -u]), *(np.asarray(s[example]) for s in state)]
        # The linear system of the nodes that no diode holds.
        nodes = [(k, j) for k in (1, 2, 3) for j in range(len(v[k]))]
        free = [(k, j) for k, j in nodes if k == 3 or v[k][j] != 0]
        place = {node: i for i, node in enumerate(free)}
        laplacian = np.zeros((len(free), len(free)))
        current = np.zeros(len(free))
        for (k, j), i in place.items():
            current[i] = params["biases"][k - 1][j]
            joined = [((k - 1, m), g[k - 1][m, j]) for m in range(len(v[k - 1]))]
            if k < 3:
                joined += [((k + 1, m), g[k][j, m]) for m in range(len(v[k + 1]))]
            for other, conductance in joined:
                laplacian[i, i] += conductance
                if other in place:
                    laplacian[i, place[other]] -= conductance
                else:
                    current[i] += conductance * v[other[0]][other[1]]
        solved = np.linalg.solve(laplacian, current)
        np.testing.assert_allclose([v[k][j] for k, j in free], solved, rtol=1e-10)
        for k in (1, 2):
            assert np.all(v[k][:2] >= 0)
            assert np.all(v[k][2:] <= 0)
            # Held nodes would go on in the direction that their diode forbids.
            inflow = v[k - 1] @ g[k - 1] + g[k] @ v[k + 1] + params["biases"][k - 1]
            held = v[k] == 0
            num_held += held.sum()
            assert np.all(inflow[:2][held[:2]] <= 0)
            assert np.all(inflow[2:][held[2:]] >= 0)
    assert 0 < num_held < 16  # some of each


def test_resistive_derivative_is_the_squared_voltage():
    network, inputs, params, state = circuit()
    grads = jax.jit(jax.grad(network.coupling))(params, state, inputs)
    below = [GAIN * np.concatenate([inputs, -inputs], 1), *state[:-1]]
    for grad, bias, u, v in zip(
        grads["conductances"], grads["biases"], below, state, strict=True
    ):
        drop = np.asarray(u)[:, :, None] - np.asarray(v)[:, None, :]
        np.testing.assert_allclose(grad, np.sum(drop**2, 0) / 2, atol=1e-12)
        np.testing.assert_allclose(bias, -np.sum(v, 0), atol=1e-12)


def test_resistive_outputs_settle_in_few_sweeps():
    network, inputs, params, state = circuit()
    start = network.start(params, inputs)
    data = phases.Data(params, inputs, jnp.zeros(2))

    @jax.jit
    def error(state):
        state = phases.relax(network, sweeps(1), data, state).state
        return state, jnp.linalg.norm(state[-1] - circuit()[3][-1])

    errors, now = [], start
    for _ in range(5):
        now, found = error(now)
        errors.append(float(found) / float(jnp.linalg.norm(state[-1])))
    assert np.all(np.diff(errors) < 0), errors
    assert errors[-1] < 0.1 * errors[0]


def test_resistive_project_clips_conductances_only():
    network, _, params, _ = circuit()
    moved = jax.tree.map(lambda x: x - 0.2, params)
    found = network.project(moved)
    for g, before in zip(found["conductances"], moved["conductances"], strict=True):
        assert float(before.min()) < 0 < float(before.max())
        np.testing.assert_array_equal(g, np.maximum(before, 0))
    close(found["biases"], moved["biases"], 0)


def test_resistive_node_that_is_nudged_too_far_has_no_state():
    network, inputs, params, state = circuit()
    total = float(jnp.sum(params["conductances"][-1], axis=0).min())
    respond = jax.jit(lambda p, h: network.respond(p, state, inputs, {}, {2: h}))
    found = respond(params, -1.01 * total)
    assert bool(jnp.any(jnp.isnan(found[-1])))
    # A node without resistors stays where it is.
    cut = [g * 0 for g in params["conductances"]]
    stays = respond({**params, "conductances": cut}, 0.0)
    close(stays, state, 0)


def connected(edges, shapes, activation="tanh", **options):
    layers = [(a, b, Dense(shapes[b][0])) for a, b in edges]
    return networks.connected(shapes, layers, "out", activation, **options)


def test_connected_chain_is_the_hopfield_network():
    shapes = {"a": (4,), "b": (3,), "out": (2,)}
    edges = [("inputs", "a"), ("a", "b"), ("b", "out")]
    units = {"a": "tanh", "b": "tanh", "out": "identity"}
    network = connected(edges, shapes, units)
    other = networks.hopfield(chain_of("tanh"))
    params = random_params(other, INPUT)
    made = jax.eval_shape(network.init, KEY, INPUT)
    assert jax.tree.structure(made) == jax.tree.structure(params)

    @jax.jit
    def both():
        found = []
        for one in (network, other):
            settle = sweeps(200, order="synchronous")
            state = phases.relax_free(one, settle, params, INPUT).state
            found.append([one.energy(params, state, INPUT), *jax.tree.leaves(state)])
        return found

    close(*both())
    assert (network.stiff, network.output_curvature) == (True, 1.0)


def test_edges_of_several_parts():
    pool = lambda s: linen.avg_pool(s, (2, 2), (2, 2))
    conv = linen.Conv(3, (3, 3), param_dtype=float)
    edges = [
        ("inputs", "maps", [conv, pool]),
        ("maps", "out", [lambda s: s.reshape(len(s), -1), Dense(2)]),
        ("inputs", "out", lambda s: s.mean((1, 2))),
    ]
    shapes = {"maps": (2, 2, 3), "out": (2,)}
    network = networks.connected(shapes, edges, "out", "tanh")
    inputs = drawn((BATCH, 4, 4, 2))
    params = random_params(network, inputs)
    assert len(params) == 3
    assert not jax.tree.leaves(params[2])
    state = {"maps": drawn((BATCH, 2, 2, 3), 2), "out": drawn((BATCH, 2), 3)}
    found = network.respond(params, state, inputs, {}, {})
    top = params[1]["kernel"]
    into = state["maps"].reshape(BATCH, -1) @ top + params[1]["bias"][None]
    close([found["out"]], [jnp.tanh(into + inputs.mean((1, 2)))])
    back = (state["out"] @ top.T).reshape(state["maps"].shape)
    up = pool(conv.apply({"params": params[0]}, inputs))
    close([found["maps"]], [jnp.tanh(up + back)])


def test_recurrent_edge_acts_with_its_transpose():
    network = connected([("inputs", "out"), ("out", "out")], {"out": (3,)})
    params = random_params(network, INPUT)
    state = {"out": drawn((BATCH, 3), 2)}
    w = params[1]["kernel"]
    drive = INPUT @ params[0]["kernel"] + state["out"] @ (w + w.T)
    drive = drive + (params[0]["bias"] + params[1]["bias"])[None]
    found = network.respond(params, state, INPUT, {}, {})
    close([found["out"]], [jnp.tanh(drive)])


def test_asymmetric_response_is_what_arrives():
    shapes = {"hidden": (4,), "out": (2,)}
    edges = [("inputs", "hidden"), ("hidden", "out"), ("out", "hidden")]
    network = connected(edges, shapes, symmetric=False)
    params = random_params(network, INPUT)
    state = {"hidden": drawn((BATCH, 4), 2), "out": drawn((BATCH, 2), 3)}
    up, across, back = (
        lambda s, p=p: s @ p["kernel"] + p["bias"][None] for p in params
    )
    respond = lambda s: network.respond(params, s, INPUT, {}, {})
    expected = lambda s: {
        "hidden": jnp.tanh(up(INPUT) + back(s["out"])),
        "out": jnp.tanh(across(s["hidden"])),
    }
    found, slope = jax.jvp(respond, (state,), (state,))
    wanted, wanted_slope = jax.jvp(expected, (state,), (state,))
    close(jax.tree.leaves(found), jax.tree.leaves(wanted))
    # Rules differentiate it: recurrent back-propagation of asymmetric weights.
    close(jax.tree.leaves(slope), jax.tree.leaves(wanted_slope))


def test_network_from_an_energy_is_the_hopfield_network():
    def written(params, state, inputs):
        hidden, out = state
        drive = hidden @ params[1]["kernel"] + params[1]["bias"][None]
        below = inputs @ params[0]["kernel"] + params[0]["bias"][None]
        squares = jnp.sum(hidden**2) / 2 + jnp.sum(out**2) / 2
        return squares - jnp.sum(hidden * below) - jnp.sum(out * drive)

    other = networks.hopfield(chain_of("hard_sigmoid", (4, 2)), "hard_sigmoid")
    network = networks.from_energy(
        written, other.init, other.start, 1, project=lambda s: jnp.clip(s, 0, 1)
    )
    params = random_params(other, INPUT, 0.6)
    found, expected = (settled(one, params, INPUT) for one in (network, other))
    close(found, expected)
    inside = [(s > 0) & (s < 1) for s in expected]
    share = float(jnp.concatenate(inside, 1).mean())
    assert 0 < share < 1  # some bounds are active, not all
    force, stiffness = {1: drawn((BATCH, 2), 4)}, {1: 0.3}
    args = (params, expected, INPUT, force, stiffness)
    close(network.respond(*args), other.respond(*args))
    close([network.outputs(params, found)], [found[1]], 0)
    doubled = networks.from_energy(
        written, other.init, other.start, lambda params, state: 2 * state[1]
    )
    assert doubled.output_key is None
    assert not doubled.stiff
    close([doubled.outputs(params, found)], [2 * found[1]], 0)


def test_larger_curvature_takes_a_smaller_step():
    quadratic = lambda params, state, inputs: jnp.sum(3 * state[0] ** 2 / 2 - state[0])
    network = networks.from_energy(
        quadratic, lambda key, inputs: [], lambda p, u: [u], 0, curvature=4.0
    )
    state = [jnp.ones((2, 1))]
    found = network.respond([], state, state[0], {0: jnp.ones((2, 1))}, {0: 1.0})
    close(found, [jnp.full((2, 1), 1 - (3 - 1 + 1) / 5)])


def test_dtypes_stay():
    """Of the states and the gradients; only traced."""
    dtype = jnp.bfloat16
    layer = functools.partial(linen.Dense, param_dtype=dtype)
    chain = energy.feedforward([layer(4), layer(2)], "hard_sigmoid")
    shapes = {"hidden": (4,), "out": (2,)}
    edges = [("inputs", "hidden", layer(4)), ("hidden", "out", layer(2))]
    made = [
        networks.hopfield(chain),
        networks.lifted(chain),
        networks.predictive(chain),
        networks.predictive(chain, free_output=True),
        networks.connected(shapes, edges, "out"),
        networks.connected(shapes, edges, "out", symmetric=False),
        networks.resistive([5, 4, 2]),
    ]
    targets = jnp.array([0, 1, 1])
    for network in made:
        if network is made[-1]:  # conductances are float32 at least
            dtype = jnp.float32
        inputs = INPUT.astype(dtype)
        params = jax.eval_shape(network.init, KEY, inputs)
        rule = energy.equilibrium_propagation(
            network, COST, sweeps(1, step_size=0.5), sweeps(2, rtol=0.01), beta=0.5
        )
        (_, aux), grads = jax.eval_shape(
            rule.value_and_grad, params, inputs, targets, None
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        assert {leaf.dtype for leaf in jax.tree.leaves(aux.state)} == {jnp.dtype(dtype)}
        same = jax.tree.map(lambda x, y: x.dtype == y.dtype, grads, params)
        assert all(jax.tree.leaves(same))
        assert aux.free_residual.dtype == jnp.float32


TWO = {"hidden": (4,), "out": (2,)}


SAME = linen.Dense(2)


def responded(total):
    """The response of an energy of one's own, once it is initialised."""
    network = networks.from_energy(
        total,
        init=lambda key, u: jnp.ones((4, 2)),
        start=lambda params, u: [jnp.zeros((len(u), 2))],
        output=0,
    )
    inputs = jax.random.normal(jax.random.key(0), (5, 4))
    params = network.init(jax.random.key(0), inputs)
    return network.respond(params, network.start(params, inputs), inputs, {}, {})


def test_energies_that_couple_examples_are_not_refused():
    """Only a mean has another nudge than it says; a sum passes, of one example too."""
    for total in (
        lambda p, s, u: jnp.sum(s[0] ** 2 - s[0] * (u @ p)),
        lambda p, s, u: jnp.sum(s[0] ** 2) + jnp.sum(jnp.mean(s[0] - u @ p, 0) ** 2),
    ):
        (state,) = responded(total)
        assert state.shape == (5, 2)
    traced = jax.vmap(
        lambda key: networks.from_energy(
            lambda p, s, u: jnp.sum(s[0] ** 2 - s[0] * (u @ p)),
            init=lambda key, u: jax.random.normal(key, (4, 2)),
            start=lambda params, u: [jnp.zeros((len(u), 2))],
            output=0,
        ).init(key, jnp.ones((5, 4)))
    )
    assert traced(jax.random.split(jax.random.key(0), 3)).shape == (3, 4, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: networks.hopfield(chain_of("gelu")),
            "hopfield: the activation 'gelu'",
        ),
        (
            lambda: networks.hopfield(chain_of("tanh"), "silu"),
            "'silu' has no poten",
        ),
        (lambda: networks.lifted(chain_of("gelu")), "lifted: the activation 'gelu'"),
        (
            lambda: networks.predictive(chain_of("tanh", (2,))),
            "predictive: expected a hidden layer, got 1 block",
        ),
        (
            lambda: networks.resistive([3]),
            r"expected at least two sizes, a positive gain and spread, got sizes=\[3\]",
        ),
        (lambda: networks.resistive([3, 2], gain=0.0), "got .*gain=0.0"),
        (lambda: networks.resistive([3, 2], spread=float("nan")), "got .*spread=nan"),
        (
            lambda: connected([("inputs", "hidden"), ("top", "out")], TWO),
            r"there is no edge 'top' -> 'out': the layers are \['hidden', 'out'\]",
        ),
        (
            lambda: networks.connected(TWO, [("hidden", "inputs", Dense(5))], "out"),
            "there is no edge 'hidden' -> 'inputs'.*is a source only",
        ),
        (
            lambda: networks.connected(TWO, [], "top"),
            r"no layer 'top' among \['hidden', 'out'\]",
        ),
        (
            lambda: networks.connected(TWO, [], "out", {"out": "tanh"}),
            r"expected an activation for each of \['hidden', 'out'\], got \['out'\]",
        ),
        (
            lambda: networks.connected(TWO, [], "out", "gelu"),
            "connected: the activation 'gelu' has no potential",
        ),
        (
            lambda: networks.connected(TWO, [("inputs", "out", Dense(3))], "out").init(
                KEY, INPUT
            ),
            r"the edge 'inputs' -> 'out' puts out \(3,\), expected \(2,\)",
        ),
        (
            lambda: networks.from_energy(
                lambda p, s, u: 0.0, lambda k, u: [], lambda p, u: u, 0, curvature=0.0
            ),
            "from_energy: curvature must be positive, got 0.0",
        ),
        (  # E13
            lambda: networks.connected(
                {"out": (2,)},
                [("inputs", "out", SAME), ("out", "out", SAME)],
                "out",
            ),
            "connected: block 1 holds the same Dense object as block 0",
        ),
        (  # E4: one number for each example
            lambda: responded(lambda p, s, u: jnp.sum(s[0] ** 2 - s[0] * (u @ p), -1)),
            r"an energy must be one number, the sum .*, got the shape \(5",
        ),
        (  # E5: a mean
            lambda: responded(lambda p, s, u: jnp.mean(s[0] ** 2 - s[0] * (u @ p))),
            r"the energy must be summed over the examples, and is a mean",
        ),
        (
            lambda: keys_of(INPUT),
            "a state must be a list, tuple or dict of arrays.*got ArrayImpl",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
