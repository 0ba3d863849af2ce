"""E1: layers whose units are coupled are right in every rule, or refused.

An activation of softmax's kind has a symmetric Jacobian that is not diagonal;
`tanh(a @ M)` has one that is not symmetric.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import CLASSES, KEY, ON_CHAINS, Dense, data, relative_error
from flax import linen

from bilevel import energy, hypergradients, linear_solvers
from bilevel.energy import activations, networks
from bilevel.energy.elementwise import is_elementwise
from bilevel.energy.fenchel_pairs import require_conjugate, require_gradient
from bilevel.energy.learning_rule import Aligned

COST = energy.squared_error()
MIX = 0.4 * jax.random.normal(jax.random.key(7), (6, 6), jnp.float64)
half_square = lambda x: x**2 / 2


def centre(a):
    return a - jnp.mean(a, axis=-1, keepdims=True)


centred = energy.Activation(
    "centred", centre, half_square, lambda a: half_square(centre(a))
)
mixed = energy.Activation(
    "mixed", lambda a: jnp.tanh(a @ MIX.astype(a.dtype)), half_square, half_square
)
softmax = activations.by_name("softmax")
normed = energy.Activation(
    # The gradient of sqrt(1 + |centred|^2), as of layer normalisation.
    "normed",
    lambda a: centre(a) / jnp.sqrt(1 + jnp.sum(centre(a) ** 2, axis=-1, keepdims=True)),
    half_square,
    lambda a: jnp.sqrt(1 + jnp.sum(centre(a) ** 2, axis=-1)),
)
SYMMETRIC = {"centred": centred, "softmax": softmax, "normed": normed}
NUDGE = 1e-4
thorough = functools.partial(pytest.param, marks=pytest.mark.thorough)


def chain_of(activation):
    return energy.feedforward([Dense(6), Dense(6), Dense(CLASSES)], activation)


def biased(params, size):
    """Weights and biases that are not zero."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    moved = [
        size * (x + 0.3 * jax.random.normal(key, x.shape, x.dtype))
        for x, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


@functools.cache
def on_chain(activation):
    """Parameters, data, and back-propagation's gradient."""
    chain = chain_of(activation)
    inputs, labels = data((6, 20))
    params = biased(chain.init(KEY, inputs), 0.6)
    exact = jax.jit(energy.back_propagation(chain, COST))(params, inputs, labels)[1]
    return chain, params, inputs, labels, exact


EXACT = ("feedback_alignment", "kolen_pollack", "z_il")
NEAR = {
    "dual_propagation": lambda chain: energy.dual_propagation(chain, COST, beta=1e-3),
    "fenchel_back_propagation": lambda chain: energy.fenchel_back_propagation(
        chain, COST, betas=NUDGE
    ),
    "multi_pass_dual_propagation": lambda chain: energy.multi_pass_dual_propagation(
        chain, COST, beta=1e-3, num_passes=2
    ),
    "lpom": lambda chain: energy.lpom(
        chain, COST, beta=NUDGE, clamped=False, num_sweeps=99, num_inner=1
    ),
    "predictive_coding": lambda chain: energy.predictive_coding(
        chain,
        COST,
        energy.relaxations.sweeps(100, order="synchronous", step_size=0.5),
        beta=NUDGE,
    ),
}
# Not the gradient by construction: no activation could make them so.
OTHERS = {
    "back_propagation",
    "difference_target_propagation",
    "direct_feedback_alignment",
    "incremental_predictive_coding",
    "sign_symmetry",
}


def test_every_rule_of_chains_is_compared():
    assert {*EXACT, *NEAR, *OTHERS} == {*ON_CHAINS}


@pytest.mark.parametrize("activation", [softmax, mixed], ids=lambda a: a.name)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.thinned(3)
def test_rules_that_are_back_propagation(name, activation):
    chain, params, inputs, labels, exact = on_chain(activation)
    rule = getattr(energy, name)(chain, COST)
    own = params if name == "z_il" else Aligned(params, params[1:])
    grads = jax.jit(rule)(own, inputs, labels)[1]
    grads = grads if name == "z_il" else grads.forward
    assert relative_error(grads, exact) < 1e-12


@pytest.mark.parametrize(
    "activation", [softmax, thorough(normed)], ids=lambda a: a.name
)
@pytest.mark.parametrize("name", NEAR)
@pytest.mark.thinned(3)
def test_rules_that_approach_back_propagation(name, activation):
    chain, params, inputs, labels, exact = on_chain(activation)
    grads = jax.jit(NEAR[name](chain))(params, inputs, labels)[1]
    assert relative_error(grads, exact) < 1e-3


@pytest.mark.parametrize("name", NEAR)
def test_a_jacobian_that_is_not_symmetric(name):
    """Refused where J would stand in for its transpose; prediction errors need none."""
    chain, params, inputs, labels, exact = on_chain(mixed)
    if name == "predictive_coding":
        grads = jax.jit(NEAR[name](chain))(params, inputs, labels)[1]
        assert relative_error(grads, exact) < 1e-3
        return
    with pytest.raises(
        ValueError, match=r"'mixed' couples .* not symmetric|not the derivative of its"
    ):
        NEAR[name](chain)(params, inputs, labels)


def test_direct_feedback_with_the_products_of_the_weights():
    """Exact for the top hidden layer, whatever its activation."""
    chain, params, inputs, labels, exact = on_chain(mixed)
    rule = energy.direct_feedback_alignment(chain, COST)
    aligned = rule.init(KEY, inputs)
    feedback = [aligned.feedback[0], params[-1]["kernel"].T]
    grads = rule(Aligned(params, feedback), inputs, labels)[1].forward
    assert relative_error(grads[1:], exact[1:]) < 1e-12
    assert relative_error(grads[:1], exact[:1]) > 0.1


@pytest.mark.thorough
def test_inverses_of_coupled_layers_have_the_layers_shape():
    """Softmax over the channels of an image, not over all of its units."""
    flat = [lambda s: s.reshape(len(s), -1), Dense(CLASSES)]
    blocks = [linen.Conv(3, (3, 3), param_dtype=float) for _ in range(2)]
    chain = energy.feedforward([*blocks, flat], "softmax")
    inputs, labels = data((2, 4, 4, 1))
    rule = energy.difference_target_propagation(chain, COST, noise=0.0)
    params = rule.init(KEY, inputs)
    exact_rule = jax.jit(energy.back_propagation(chain, COST))
    exact = exact_rule(params.forward, inputs, labels)[1]
    grads = jax.jit(rule)(params, inputs, labels)[1].forward
    assert relative_error(grads[1:], exact[1:]) < 1e-12


# Energies: the coupled layer puts out, is hidden, or is both.
def output(activation):
    chain = energy.feedforward([Dense(6), Dense(6)], "tanh")
    return networks.hopfield(chain, activation)


def hidden(activation):
    return networks.hopfield(energy.feedforward([Dense(6), Dense(6)], activation))


def skipping(activation, *, symmetric=True):
    edges = [
        ("inputs", "hidden", Dense(6)),
        ("hidden", "out", Dense(6)),
        ("out", "hidden", Dense(6)),
        ("inputs", "out", Dense(6)),
    ]
    return networks.connected(
        {"hidden": (6,), "out": (6,)}, edges, "out", activation, symmetric=symmetric
    )


def lifted(activation):
    return networks.lifted(energy.feedforward([Dense(6), Dense(6)], activation))


def predictive(activation):
    return networks.predictive(energy.feedforward([Dense(6), Dense(6)], activation))


def projected(activation):
    """An energy of one's own on a subspace, or whatever the activation leads to."""

    def total(params, state, inputs):
        (s,) = state
        return jnp.sum(s**2 / 2 - s * (inputs @ params) + s**4 / 40)

    return networks.from_energy(
        total,
        init=lambda key, inputs: jax.random.normal(key, (inputs.shape[1], 6), float),
        start=lambda params, inputs: [jnp.zeros((len(inputs), 6))],
        output=0,
        curvature=3.0,
        project=activation.apply,
    )


ENERGIES = {
    "output": output,
    "hidden": hidden,
    "skipping": skipping,
    "lifted": lifted,
    "predictive": predictive,
    "projected": projected,
}
SETTLE = energy.relaxations.sweeps(200, order="synchronous", step_size=0.5)


@functools.cache
def on_energy(kind, activation):
    """A network, its data, and the derivative through all sweeps."""
    network = ENERGIES[kind](activation)
    inputs, _ = data((3, 8))
    targets = jax.random.normal(KEY, (3, 6), jnp.float64)
    params = biased(network.init(KEY, inputs), 0.4)

    def cost(params):
        state = network.start(params, inputs)
        step = lambda s: jax.tree.map(
            lambda old, new: (old + new) / 2,
            s,
            network.respond(params, s, inputs, {}, {}),
        )
        state, _ = jax.lax.scan(lambda s, _: (step(s), None), state, length=200)
        return jnp.mean(COST(network.outputs(params, state), targets))

    return network, params, inputs, targets, jax.jit(jax.grad(cost))(params)


ON_ENERGIES = {
    "recurrent_back_propagation": lambda network: energy.recurrent_back_propagation(
        network, COST, SETTLE
    ),
    "equilibrium_propagation": lambda network: energy.equilibrium_propagation(
        network, COST, SETTLE, beta=1e-3
    ),
    "truncated": lambda network: energy.truncated_back_propagation_through_time(
        network, COST, num_steps=60, truncation=59
    ),
    "implicit": lambda network: energy.by_hypergradient(
        "implicit",
        network,
        COST,
        energy.state_solver(network, order="synchronous", max_steps=150),
        hypergradients.implicit(),
    ),
}


@pytest.mark.parametrize("name", ON_ENERGIES)
@pytest.mark.parametrize("kind", ["output", thorough("hidden"), thorough("skipping")])
@pytest.mark.thinned(3)
def test_rules_of_energies(kind, name):
    network, params, inputs, targets, exact = on_energy(kind, softmax)
    grads = jax.jit(ON_ENERGIES[name](network))(params, inputs, targets)[1]
    assert relative_error(grads, exact) < 1e-4


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("output", centred),
        ("hidden", softmax),
        ("skipping", softmax),
        ("predictive", softmax),
        ("lifted", normed),
        ("projected", centred),
    ],
    ids=lambda x: getattr(x, "name", x),
)
@pytest.mark.thinned(9)
def test_recurrent_back_propagation_of_other_energies(kind, activation):
    """Conjugates of one number for each example, and bounds that couple."""
    network, params, inputs, targets, exact = on_energy(kind, activation)
    rule = ON_ENERGIES["recurrent_back_propagation"](network)
    (_, aux), grads = jax.jit(rule)(params, inputs, targets)
    assert aux.converged
    if kind == "lifted":  # the free state is the forward pass
        chain = energy.feedforward([Dense(6), Dense(6)], activation)
        exact = energy.back_propagation(chain, COST)(params, inputs, targets)[1]
    assert relative_error(grads, exact) < 1e-5  # what the linear solver is asked for


def test_the_units_alone_decide_which_solver_there_is():
    network, params, inputs, targets, _ = on_energy("output", softmax)
    for solver, is_refused in ((linear_solvers.cg(), True), (None, False)):
        rule = energy.recurrent_back_propagation(network, COST, SETTLE, solver)
        if is_refused:
            with pytest.raises(ValueError, match=r"couples its units.*normal_cg"):
                rule(params, inputs, targets)
        else:
            assert jax.jit(rule)(params, inputs, targets)[0][1].converged


@pytest.mark.parametrize(
    "kind", ["output", "hidden", "skipping", "lifted", "projected"]
)
def test_energies_refuse_what_no_energy_has(kind):
    network = ENERGIES[kind](mixed)
    inputs, _ = data((3, 8))

    def respond():  # one's own energy is looked at when it is initialised
        params = network.init(KEY, inputs)
        network.respond(params, network.start(params, inputs), inputs, {}, {})

    with pytest.raises(ValueError, match=r"' couples the|not the derivative of its"):
        respond()


def test_responses_of_no_energy_take_any_activation():
    """Recurrent back-propagation is right for them, and needs no symmetric Jacobian."""
    network = skipping(mixed, symmetric=False)
    inputs, _ = data((3, 8))
    targets = jax.random.normal(KEY, (3, 6), jnp.float64)
    params = biased(network.init(KEY, inputs), 0.4)

    def cost(params):
        state = network.start(params, inputs)
        step = lambda s, _: (network.respond(params, s, inputs, {}, {}), None)
        state, _ = jax.lax.scan(step, state, length=200)
        return jnp.mean(COST(state["out"], targets))

    settle = energy.relaxations.sweeps(200, order="synchronous")
    rule = energy.recurrent_back_propagation(network, COST, settle)
    grads = jax.jit(rule)(params, inputs, targets)[1]
    assert relative_error(grads, jax.jit(jax.grad(cost))(params)) < 1e-6


POINTS = jnp.ones((2, 6))


@pytest.mark.parametrize("name", activations.NAMES)
def test_elementwise_activations_are_known_as_such(name):
    one = activations.by_name(name)
    assert is_elementwise(one.apply, POINTS) == (name != "softmax")


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a[:, ::-1],
        lambda a: a.T.reshape(a.shape),
        lambda a: jnp.cumsum(a, axis=0),
        lambda a: jnp.sort(a, axis=-1),
        lambda a: jnp.roll(a, 1, axis=0),
        lambda a: a * jnp.sum(a),
        mixed.apply,
        centre,
    ],
)
def test_functions_that_mix_elements(function):
    assert not is_elementwise(function, POINTS)


def test_elementwise_across_leaves():
    swapped = lambda s: [jnp.tanh(s[1]), s[0]]
    kept = lambda s: [jnp.tanh(s[0]), 2 * jax.nn.relu(s[1])]
    assert not is_elementwise(swapped, [POINTS, POINTS])
    assert is_elementwise(kept, [POINTS, POINTS])


def test_what_is_looked_at_and_what_cannot_be():
    for one in SYMMETRIC.values():
        require_gradient("here", one, POINTS)
        require_conjugate("here", one, POINTS)
    with pytest.raises(ValueError, match="not the derivative of its conjugate"):
        require_conjugate("here", softmax._replace(conjugate=jax.nn.softplus), POINTS)

    @jax.jit
    def traced(matrix):
        own = mixed._replace(apply=lambda a: jnp.tanh(a @ matrix))
        require_gradient("here", own, POINTS)
        return matrix

    with pytest.raises(ValueError, match="holds traced values"):
        traced(MIX)


def test_softmax_is_a_fenchel_pair():
    """Young's inequality over an example, with equality at s = f(a)."""
    a = jax.random.normal(KEY, (5, 4), jnp.float64)
    one, s = softmax, softmax.apply(a)
    value = lambda s: jnp.sum(one.potential(s), -1) + one.conjugate(a)
    np.testing.assert_allclose(value(s) - jnp.sum(s * a, -1), 0, atol=1e-14)
    slope = jax.grad(lambda a: jnp.sum(one.conjugate(a)))(a)
    np.testing.assert_allclose(slope, s, atol=1e-14)
    other = jnp.roll(s, 1, axis=0)
    assert jnp.all(value(other) - jnp.sum(other * a, -1) > 1e-3)
