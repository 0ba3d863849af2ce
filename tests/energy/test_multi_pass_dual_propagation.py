"""Multi-pass dual propagation: which schedules agree, and where they do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from energy.networks import KEY, Dense, convolutional, data, dense, relative_error

from bilevel import energy
from bilevel.energy.rules.multi_pass_dual_propagation import multi_pass_dual_propagation

COST = energy.cross_entropy()
ORDERS = ("backward", "forward_backward", "forward", "odd_even", "even_odd")


def gradient(make_rule, network, shape, **options):
    inputs, labels = data(shape)
    rule = make_rule(network, COST, **options)
    return rule(network.init(KEY, inputs), inputs, labels)[1]


multi_pass = functools.partial(gradient, multi_pass_dual_propagation)
one_sweep = functools.partial(gradient, energy.dual_propagation)
exact = functools.partial(gradient, energy.back_propagation)


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.thinned(99)
def test_one_backward_pass_is_the_one_sweep_rule(make, alpha, original):
    for beta in (0.05, 2.0):
        options = {"alpha": alpha, "beta": beta}
        expected = one_sweep(*make(), **options, original=original)
        variant = "original" if original else "transpose"
        for order in ("backward", "forward_backward"):
            found = multi_pass(*make(), **options, order=order, variant=variant)
            assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.thinned(4)
def test_a_fixed_point_of_the_one_sided_rules(order, alpha):
    """sbar = f(a) whatever the feedback: enough passes of any order are one sweep."""
    options = {"alpha": alpha, "beta": 1.0}
    expected = one_sweep(*dense(), **options)
    for num_passes in (3, 30):
        found = multi_pass(*dense(), **options, order=order, num_passes=num_passes)
        assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("num_passes", [1, 2])
def test_forward_passes_below_the_depth_do_not_reach_the_first_layer(num_passes):
    """Feedback comes down one layer a pass."""
    options = {"alpha": 0.0, "order": "forward", "num_passes": num_passes}
    found, expected = multi_pass(*dense(), **options), one_sweep(*dense(), alpha=0.0)
    unreached = 3 - num_passes
    assert relative_error(found[unreached:], expected[unreached:]) < 1e-12
    for grads in jax.tree.leaves(found[:unreached]):
        np.testing.assert_array_equal(grads, 0)
    assert relative_error(found, exact(*dense())) > 0.3


@pytest.mark.parametrize(
    ("order", "num_passes"), [("forward", 3), ("odd_even", 3), ("backward", 8)]
)
@pytest.mark.thinned(9)
def test_schedules_differ_at_second_order(order, num_passes):
    """For alpha = 1/2; so does the rule from back-propagation."""
    betas = 0.1 * 0.5 ** np.arange(3)
    found = []
    for beta in betas.tolist():
        options = {"beta": beta, "order": order, "num_passes": num_passes}
        other = multi_pass(*dense(), **options)
        found.append(relative_error(other, one_sweep(*dense(), beta=beta)))
    assert found[0] > 1e-9
    slopes = np.diff(np.log(found)) / np.diff(np.log(betas))
    np.testing.assert_allclose(slopes, 2, atol=0.05)  # the next order bends the line


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid"])
@pytest.mark.thinned(4)
def test_exact_for_piecewise_linear_activations(activation, order):
    """As long as no unit crosses a kink."""
    options = {"beta": 1e-6, "order": order, "num_passes": 4}
    found = multi_pass(*dense(activation), **options)
    assert relative_error(found, exact(*dense(activation))) < 1e-8


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.thorough
def test_the_original_rule_gets_worse_with_passes(alpha):
    """Feedback leaks upward at first order, which one sweep sees only in part."""
    expected = exact(*dense())
    options = {"alpha": alpha, "beta": 0.1, "variant": "original"}
    one = relative_error(multi_pass(*dense(), **options), expected)
    many = relative_error(multi_pass(*dense(), **options, num_passes=15), expected)
    options["variant"] = "transpose"
    transposed = multi_pass(*dense(), **options, num_passes=15)
    assert many > 1.2 * one
    assert one > 1.2 * relative_error(transposed, expected)


@functools.cache
def wide(factor=2.0):
    """Four layers of ReLU, the weights times a factor."""
    network, shape = dense("relu", widths=(16, 14, 12))
    inputs, labels = data(shape)
    params = jax.tree.map(lambda x: factor * x, network.init(KEY, inputs))
    return network, params, inputs, labels


@pytest.mark.thorough
def test_stability():
    """The transposed rule stays where it is, the original does not; damping settles."""
    network, params, inputs, labels = wide()
    state = jax.nn.relu(network.pre_activations(params, inputs)[0])

    def spread(num_passes, **options):
        rule = multi_pass_dual_propagation(
            network, COST, **options, beta=0.5, num_passes=num_passes
        )
        (_, aux), _ = jax.jit(rule.value_and_grad)(params, inputs, labels, None)
        plus, minus = aux.state[0]
        size = jnp.linalg.norm(plus - minus) / jnp.linalg.norm(state)
        return float(size), aux.converged

    (first, _), (later, settled) = (spread(n, alpha=1.0) for n in (1, 5))
    assert settled
    assert later == pytest.approx(first, rel=1e-12)
    (first, _), (later, settled) = (
        spread(n, alpha=1.0, variant="original") for n in (1, 5)
    )
    assert not settled
    assert abs(later / first - 1) > 0.2
    damped = {"variant": "damped"}
    # For alpha = 1/2 all three have the same dyads to settle at; after 12 passes the
    # changes are small because they are damped.
    assert not spread(12, **damped)[1]
    size, settled = spread(500, **damped)
    assert settled
    assert size == pytest.approx(spread(60)[0], rel=1e-6)


@pytest.mark.thorough
def test_damped_states_are_the_published_ones():
    """Two passes over layers with the damping of their kernels' spectral norms."""
    network, params, inputs, labels = wide()
    alpha, beta = 0.3, 0.5
    rule = multi_pass_dual_propagation(
        network, COST, alpha=alpha, beta=beta, num_passes=2, variant="damped"
    )
    (_, aux), _ = rule(params, inputs, labels)
    kernels = [np.asarray(one["kernel"]) for one in params]
    states = [jax.nn.relu(a) for a in network.pre_activations(params, inputs)[:-1]]
    plus, minus = [np.array(s) for s in states], [np.array(s) for s in states]
    outputs = network.apply(params, inputs)
    top = np.asarray(jax.nn.softmax(outputs) - jax.nn.one_hot(labels, 5)) * -beta
    damping = [max(0, (np.linalg.norm(one, 2) ** 2 - 1) / 2) for one in kernels[1:]]
    assert min(damping) > 0.5
    for k in (2, 1, 0, 2, 1, 0):
        below = alpha * plus[k - 1] + (1 - alpha) * minus[k - 1] if k else inputs
        a = np.asarray(below @ kernels[k])
        r = (top if k == 2 else plus[k + 1] - minus[k + 1]) @ kernels[k + 1].T
        l = damping[k]
        plus[k] = np.maximum(0, a + alpha * r + l * plus[k]) / (1 + l)
        minus[k] = np.maximum(0, a - (1 - alpha) * r + l * minus[k]) / (1 + l)
    found = aux.state[:-1]
    # Power iteration has found the norms to so many digits.
    assert relative_error(found, list(zip(plus, minus, strict=True))) < 1e-6


@pytest.mark.thorough
def test_the_maxima_are_those_of_the_mean_state():
    """Features in pairs, of which the larger goes up; at s+ it would be another one."""
    alpha, beta, num_passes = 0.5, 5.0, 2  # after 3 the two would agree again
    pool = lambda s: s.reshape(len(s), -1, 2).max(-1)
    network = energy.feedforward([Dense(12), [pool, Dense(5)]], "tanh")
    inputs, labels = data((6, 8))
    params = network.init(KEY, inputs)
    rule = multi_pass_dual_propagation(
        network, COST, alpha=alpha, beta=beta, num_passes=num_passes
    )
    (_, aux), grads = rule(params, inputs, labels)
    one, two = jax.tree.map(np.asarray, params)
    error = jax.nn.softmax(network.apply(params, inputs))
    top = -beta * np.asarray(error - jax.nn.one_hot(labels, 5))

    def mask(s):
        pairs = s.reshape(6, 6, 2)
        return (pairs == pairs.max(-1, keepdims=True)).astype(float)

    a = np.asarray(inputs @ one["kernel"])
    plus = minus = mean = np.tanh(a)
    others = 0
    for _ in range(num_passes):
        others += np.sum(mask(plus) != mask(mean))
        down = top @ two["kernel"].T
        r = (mask(mean) * down[:, :, None]).reshape(6, 12)
        plus, minus = np.tanh(a + (1 - alpha) * r), np.tanh(a - alpha * r)
        mean = alpha * plus + (1 - alpha) * minus
    assert others > 0
    assert relative_error(aux.state[0], (plus, minus)) < 1e-13
    pooled = (mask(mean) * mean.reshape(6, 6, 2)).sum(-1)
    expected = [
        {"kernel": inputs.T @ (plus - minus), "bias": (plus - minus).sum(0)},
        {"kernel": pooled.T @ top, "bias": top.sum(0)},
    ]
    expected = jax.tree.map(lambda x: -x / (beta * 6), expected)
    assert relative_error(grads, expected) < 1e-12


def test_the_output_is_nudged_from_its_forward_prediction():
    """Also where the states below have moved: delta_L = -beta dC/da_L throughout."""
    network, shape = dense()
    inputs, labels = data(shape)
    params = network.init(KEY, inputs)
    alpha, beta = 0.3, 2.0
    rule = multi_pass_dual_propagation(
        network, COST, alpha=alpha, beta=beta, num_passes=4, order="forward"
    )
    (_, aux), grads = rule(params, inputs, labels)
    g = jax.nn.softmax(aux.outputs) - jax.nn.one_hot(labels, 5)
    bias = jnp.mean(g, axis=0)
    np.testing.assert_allclose(grads[-1]["bias"], bias, rtol=1e-12)
    plus, minus = aux.state[1]
    a = network.blocks[2](params[2], alpha * plus + (1 - alpha) * minus)
    expected = (a - (1 - alpha) * beta * g, a + alpha * beta * g)
    assert relative_error(aux.state[-1], expected) < 1e-14
    assert float(jnp.max(jnp.abs(a - aux.outputs))) > 1e-3


@pytest.mark.thorough
def test_damped_passes_over_convolutions_in_narrow_types():
    """The loop keeps the states' type; damping without an excess norm does nothing."""
    network, shape = convolutional("relu")
    inputs, labels = data(shape)
    params = network.init(KEY, inputs)
    params = jax.tree.map(lambda x: (x / 4).astype(jnp.float32), params)
    options = {"beta": 1.0, "num_passes": 8}
    found = []
    for variant in ("original", "damped"):
        rule = multi_pass_dual_propagation(network, COST, **options, variant=variant)
        compiled = jax.jit(rule.value_and_grad)
        found.append(compiled(params, inputs.astype(jnp.float32), labels, None)[1])
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    assert relative_error(found[1], found[0]) < 1e-6


@pytest.mark.thorough
def test_what_aux_tells():
    network, shape = dense()
    inputs, labels = data(shape)
    params = network.init(KEY, inputs)

    def aux(num_passes, **options):
        rule = multi_pass_dual_propagation(
            network, COST, beta=1.0, num_passes=num_passes, **options
        )
        return rule(params, inputs, labels)[0][1]

    assert aux(1).converged is None  # there is nothing to compare the pass with
    assert not aux(3, order="forward").converged
    assert aux(8, order="forward").converged
    before, after = aux(3, order="forward"), aux(4, order="forward")
    changes = jax.tree.leaves(
        jax.tree.map(lambda x, y: y - x, before.state[:2], after.state[:2])
    )
    squares = sum(float(jnp.sum(x**2)) for x in changes)
    count = 2 * 6 * (16 + 12 + 5)  # the output's dyad does not change
    residual, displacement = after.nudged_residual, after.displacement
    np.testing.assert_allclose(np.array(residual), (squares / count) ** 0.5)
    deltas = [plus - minus for plus, minus in after.state]
    squares = sum(float(jnp.sum(x**2)) for x in deltas)
    np.testing.assert_allclose(np.array(displacement), (2 * squares / count) ** 0.5)


@pytest.mark.thorough
def test_has_not_converged_while_feedback_is_on_its_way():
    """With small weights what arrives is small beside the upper layers' feedback."""
    network, shape = dense(widths=(16, 14, 12))
    inputs, labels = data(shape)
    params = jax.tree.map(lambda x: 0.05 * x, network.init(KEY, inputs))
    found = []
    for num_passes in (3, 5):
        rule = multi_pass_dual_propagation(
            network, COST, order="forward", num_passes=num_passes
        )
        (_, aux), _ = rule(params, inputs, labels)
        found.append(bool(aux.converged))
        ratio = np.array(aux.nudged_residual) / np.array(aux.displacement)
        assert ratio < 0.01
    assert found == [False, True]


ALPHA = 0.3


def by_hand(layers, beta, damping, *, relinearised=False):
    """The original rule as the released code has it, layers counted from 1.

    Returns the gradients of the kernels and the output's dyad.
    """
    network, params, inputs, labels = wide(1.5)
    kernels = [np.asarray(one["kernel"]) for one in params]
    biases = [np.asarray(one["bias"]) for one in params]
    last = len(kernels)
    slope = jax.grad(lambda o: jnp.sum(COST(o, labels)))
    states = [inputs, *map(jax.nn.relu, network.pre_activations(params, inputs)[:-1])]
    outputs = network.apply(params, inputs)
    plus = [*map(np.asarray, states), np.asarray(outputs)]
    minus = list(plus)
    mean = lambda k: ALPHA * plus[k] + (1 - ALPHA) * minus[k]
    for k in layers:
        a = mean(k - 1) @ kernels[k - 1] + biases[k - 1]
        if k == last:
            g = np.asarray(slope(jnp.asarray(a) if relinearised else outputs))
            plus[k], minus[k] = a - ALPHA * beta * g, a + (1 - ALPHA) * beta * g
            continue
        r, l = (plus[k + 1] - minus[k + 1]) @ kernels[k].T, damping[k - 1]
        plus[k] = np.maximum(0, (a + ALPHA * r + l * plus[k]) / (1 + l))
        minus[k] = np.maximum(0, (a - (1 - ALPHA) * r + l * minus[k]) / (1 + l))
    grads = [
        -mean(k).T @ (plus[k + 1] - minus[k + 1]) / (beta * len(inputs))
        for k in range(last)
    ]
    return grads, (plus[-1], minus[-1])


def kernels_of(beta, **options):
    network, params, inputs, labels = wide(1.5)
    rule = multi_pass_dual_propagation(network, COST, alpha=ALPHA, beta=beta, **options)
    (_, aux), grads = jax.jit(rule)(params, inputs, labels)
    return [one["kernel"] for one in grads], aux.state[-1]


@pytest.mark.thorough
def test_damped_visits_are_in_the_published_order():
    """E2: 4 layers, 3 passes; the last visit of layer 1 stands at the end."""
    _, params, _, _ = wide(1.5)
    norms = [np.linalg.norm(np.asarray(one["kernel"]), 2) for one in params]
    damping = [max(0, (norm**2 - 1) / 2) for norm in norms[1:]]
    assert min(damping) > 0.1
    options = {"order": "forward_backward", "variant": "damped", "num_passes": 3}
    found, _ = kernels_of(0.1, **options)
    visits = [4, 3, 2, *2 * [1, 2, 3, 4, 3, 2, 1], 1]
    assert relative_error(found, by_hand(visits, 0.1, damping)[0]) < 1e-6
    other = [4, 3, 2, 1, *2 * [1, 2, 3, 4, 3, 2, 1]]
    assert relative_error(found, by_hand(other, 0.1, damping)[0]) > 1e-4


@pytest.mark.parametrize("order", ["backward", "forward_backward"])
@pytest.mark.thorough
def test_the_original_rule_takes_the_cost_at_every_visit(order):
    """E3: as in the released code; "original" takes it at the forward outputs."""
    back = {"backward": [4, 3, 2, 1], "forward_backward": [1, 2, 3, 4, 3, 2, 1]}[order]
    visits = [4, 3, 2, *([1] if order == "backward" else []), *2 * back]
    for variant in ("original", "relinearised"):
        options = {"order": order, "num_passes": 3, "variant": variant}
        found, _ = kernels_of(0.5, **options)
        is_new = variant == "relinearised"
        both = [
            by_hand(visits, 0.5, [0, 0, 0], relinearised=one)[0]
            for one in (is_new, not is_new)
        ]
        assert relative_error(found, both[0]) < 1e-12
        assert relative_error(found, both[1]) > 1e-3


@pytest.mark.parametrize("num_passes", [1, 3])
@pytest.mark.parametrize("variant", ["original", "relinearised"])
@pytest.mark.thinned(4)
def test_the_dyads_that_are_told_were_visited(variant, num_passes):
    """E14: those of the output, too."""
    _, found = kernels_of(0.5, num_passes=num_passes, variant=variant)
    _, expected = by_hand(
        num_passes * [4, 3, 2, 1],
        0.5,
        [0, 0, 0],
        relinearised=variant == "relinearised",
    )
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.5}, r"alpha must lie in \[0, 1\], got -0.5"),
        ({"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        ({"beta": float("nan")}, "beta must be positive and finite, got nan"),
        ({"order": "sideways"}, "order must be one of backward, .*, got 'sideways'"),
        ({"num_passes": 0}, "num_passes must be an integer >= 1, got 0"),
        ({"num_passes": 1.5}, "num_passes must be an integer >= 1, got 1.5"),
        ({"variant": "first"}, "variant must be one of transpose, .*, got 'first'"),
        ({"variant": "damped"}, r"potential s\^2 / 2 .*, got 'tanh'"),
    ],
)
def test_what_is_refused(options, message):
    network, _ = dense()
    with pytest.raises(ValueError, match=message):
        multi_pass_dual_propagation(network, COST, **options)
