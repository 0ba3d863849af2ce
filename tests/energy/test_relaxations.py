"""Solvers of a phase, against sweeps by hand and the solution of a linear system."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from bilevel import energy
from bilevel.energy import phases, relaxations
from bilevel.energy.relaxations import anderson, damped_sweeps, gradient, sweeps
from bilevel.energy.relaxations.base import drawn as noise_of

BATCH, WIDTHS = 3, (2, 3, 1, 2)
RNG = np.random.default_rng(0)
DRIVES = [RNG.normal(size=(BATCH, n)) for n in WIDTHS]
WEIGHTS = [0.4 * RNG.normal(size=pair) for pair in itertools.pairwise(WIDTHS)]
START = [RNG.normal(size=(BATCH, n)) for n in WIDTHS]


def respond(state, force=None):
    """Of the energy sum_k |s_k|^2 / 2 - <s_k, b_k> - <s_k W_k, s_{k+1}>; numpy too."""
    force = force or {}
    new = []
    for k, drive in enumerate(DRIVES):
        total = drive - force.get(k, 0)
        if k > 0:
            total = total + state[k - 1] @ WEIGHTS[k - 1]
        if k < len(DRIVES) - 1:
            total = total + state[k + 1] @ WEIGHTS[k].T
        new.append(total)
    return new


@functools.cache
def solution():
    """Of s = respond(s), by the system's columns."""
    zero = [np.zeros_like(d) for d in DRIVES]
    flat = lambda state: np.concatenate(state, axis=1)
    constant = flat(respond(zero))
    ends = np.cumsum(WIDTHS)
    columns = []
    for unit in np.eye(sum(WIDTHS)):
        state = np.split(np.tile(unit, (BATCH, 1)), ends[:-1], axis=1)
        columns.append((flat(respond(state)) - constant)[0])
    matrix = np.eye(sum(WIDTHS)) - np.array(columns).T
    assert np.min(np.linalg.eigvalsh(matrix)) > 0.1
    return np.linalg.solve(matrix, constant.T).T


def solve(relaxation, key=None, start=START, apply=respond):
    found = jax.jit(lambda s, key: relaxation.solve(apply, s, key))(start, key)
    return [np.asarray(s) for s in found.state], float(found.residual), found.num_steps


def by_hand(groups, num_steps, step_size=1.0):
    state = list(START)
    for _ in range(num_steps):
        for group in groups:
            new = respond(state)
            for k in group:
                state[k] = state[k] + step_size * (new[k] - state[k])
    return state


def rms(state):
    return np.sqrt(np.mean(np.concatenate(state, axis=1) ** 2))


def gap(state):
    new = respond(state)
    return rms([a - b for a, b in zip(new, state, strict=True)])


def close(found, expected, tolerance=1e-13):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


ORDERS = {
    "synchronous": [[0, 1, 2, 3]],
    "even_odd": [[1, 3], [0, 2]],  # layers are counted from 1
    "odd_even": [[0, 2], [1, 3]],
    "forward": [[0], [1], [2], [3]],
    "backward": [[3], [2], [1], [0]],
    "forward_backward": [[0], [1], [2], [3], [2], [1], [0]],
    ((2,), (0, 1, 3)): [[2], [0, 1, 3]],
}


def test_there_are_all_orders():
    assert set(relaxations.ORDERS) == {name for name in ORDERS if isinstance(name, str)}


@pytest.mark.parametrize("order", ORDERS)
def test_orders_are_those_groups(order):
    found = sweeps(2, order=order, step_size=0.9).solve(respond, START, None)
    assert int(found.num_steps) == 2
    close(found.state, by_hand(ORDERS[order], 2, 0.9))


def test_every_order_reaches_the_solution():
    solved = jax.jit(
        lambda s: [sweeps(300, order=one).solve(respond, s, None) for one in ORDERS]
    )
    for found in solved(START):
        close([np.concatenate(found.state, 1)], [solution()], 1e-11)
        assert float(found.residual) < 1e-12


def test_names_of_a_state_are_sorted():
    """A dict's layers are updated in the order of their names."""
    keys = "abcd"
    apply = lambda state, force: dict(
        zip(keys, respond([state[k] for k in keys]), strict=True)
    )
    start = dict(zip(reversed(keys), reversed(START), strict=True))
    found = sweeps(1, order="forward").solve(apply, start, None).state
    close([found[k] for k in keys], by_hand(ORDERS["forward"], 1))
    groups = [["d"], ["a", "b", "c"]]
    found = sweeps(1, order=groups).solve(apply, start, None).state
    close([found[k] for k in keys], by_hand([[3], [0, 1, 2]], 1))


def test_one_layer_has_every_order():
    apply = lambda state, force: [1 + state[0] / 2]
    for order in relaxations.ORDERS:
        found = sweeps(1, order=order).solve(apply, [jnp.zeros((1, 1))], None)
        assert found.state[0].item() == 1


@pytest.mark.parametrize("step_size", [1.0, 0.25])
def test_residual_is_the_way_that_was_left_before_the_last_sweep(step_size):
    relaxation = sweeps(4, order="synchronous", step_size=step_size)
    _, residual, _ = solve(relaxation)
    before = by_hand(ORDERS["synchronous"], 3, step_size)
    np.testing.assert_allclose(residual, gap(before), rtol=1e-12)


def test_rtol_stops_when_a_sweep_moves_little():
    rtol, groups, num = 1e-4, ORDERS["even_odd"], 0
    state = START
    while True:
        num, before, state = num + 1, state, by_hand(groups, num + 1)
        moved = rms([a - b for a, b in zip(state, before, strict=True)])
        if moved <= rtol * rms(state):
            break
    assert num > 5
    found, residual, num_steps = solve(sweeps(1000, rtol=rtol))
    assert int(num_steps) == num
    close(found, state)
    np.testing.assert_allclose(residual, moved, rtol=1e-9)
    _, _, num_steps = solve(sweeps(num - 1, rtol=rtol))
    assert int(num_steps) == num - 1  # the cap


@pytest.mark.parametrize(
    "make", [sweeps, functools.partial(gradient, optax.sgd(1.0)), anderson]
)
def test_stops_at_once_where_settled_and_at_nan(make):
    settled = np.split(solution(), np.cumsum(WIDTHS)[:-1], axis=1)
    relaxation = make(num_steps=50, rtol=1e-6)

    @jax.jit
    def solved(start, number):
        apply = lambda state, force: [s + number for s in respond(state)]
        return relaxation.solve(apply, start, None)

    found = solved(settled, 0.0)
    assert int(found.num_steps) == 1
    close(found.state, settled, 1e-12)
    assert float(found.residual) < 1e-12
    broken = solved(START, np.nan)
    assert np.isnan(broken.residual)
    assert int(broken.num_steps) == 1
    assert np.all(np.isnan(np.concatenate(broken.state, 1)))
    lost = solved([np.full_like(s, np.nan) for s in START], 0.0)
    assert not np.isfinite(lost.residual)
    assert np.all(np.isnan(np.concatenate(lost.state, 1)))


def deep(num_blocks, counts):
    def counted(x):
        counts.append(1)
        return x

    blocks = [[linen.Dense(4), counted] for _ in range(num_blocks)]
    return energy.feedforward(blocks, "tanh")


@pytest.mark.parametrize("order", ["forward", "even_odd", "forward_backward"])
@pytest.mark.thinned(9)
def test_a_sweep_traces_every_layer_once(order):
    """E9: the number of calls of blocks, and of lines of the program."""
    calls, lines = [], []
    for num_blocks in (4, 8, 16):
        counts = []
        chain = deep(num_blocks, counts)
        inputs = jnp.ones((2, 4))
        params = jax.eval_shape(chain.init, jax.random.key(0), inputs)
        network = energy.networks.hopfield(chain)
        counts.clear()

        def settle(params, network=network, inputs=inputs):
            solver = sweeps(10, order=order)
            return phases.relax_free(network, solver, params, inputs).state

        lowered = jax.jit(settle).lower(params)
        calls.append(len(counts))
        lines.append(len(lowered.as_text().splitlines()))
    assert calls[2] / calls[1] < 2.2
    assert (lines[2] - lines[1]) / (lines[1] - lines[0]) < 2.2  # 4 if it were L^2


@pytest.mark.parametrize("order", ["forward", "even_odd", ((2,), (0, 1, 3))])
def test_layers_in_parts_are_those_of_the_whole_response(order):
    """E9: with noise, which pushes the layers of a group, and for layers by name."""
    key, noise, names = jax.random.key(5), 0.1, "abcd"

    def named(state, force):
        pushed = {names.index(name): one for name, one in force.items()}
        new = respond([state[name] for name in names], pushed)
        return dict(zip(names, new, strict=True))

    expected = [jnp.asarray(s) for s in START]
    for number, group in enumerate(ORDERS[order]):
        own = jax.random.fold_in(jax.random.fold_in(key, 0), number)
        new = respond(expected, noise_of(noise, own, expected, group))
        expected = [new[k] if k in group else expected[k] for k in range(4)]
    start = [jnp.asarray(s) for s in START]
    found = sweeps(1, order=order, noise=noise).solve(respond, start, key)
    close(found.state, expected)
    groups = [[names[k] for k in group] for group in ORDERS[order]]
    start = dict(zip(names, start, strict=True))
    found = sweeps(1, order=groups, noise=noise).solve(named, start, key)
    close([found.state[name] for name in names], expected)


def test_part_of_the_way_is_gradient_descent():
    """Of a quadratic energy with curvature 1, with one step size for each layer."""
    sizes = [0.1, 0.2, 0.3, 0.4]

    @jax.jit
    def slope(state):
        def energy(state):
            own = zip(state, DRIVES, strict=True)
            squares = [jnp.sum(s**2 / 2 - s * b) for s, b in own]
            pairs = zip(state[:-1], WEIGHTS, state[1:], strict=True)
            return sum(squares) - sum(jnp.sum((a @ w) * b) for a, w, b in pairs)

        return jax.grad(energy)(state)

    state = START
    for _ in range(3):
        moves = slope(state)
        state = [s - h * g for s, h, g in zip(state, sizes, moves, strict=True)]
    close(solve(sweeps(3, order="synchronous", step_size=sizes))[0], state)
    # The same with step sizes that are traced.
    traced = jax.jit(
        lambda h: damped_sweeps(3, "synchronous", h).solve(respond, START, None).state
    )
    close(traced([jnp.asarray(h) for h in sizes]), state)


def test_gradient_with_sgd_is_the_synchronous_sweep():
    found, residual, num_steps = solve(gradient(optax.sgd(0.3), 5))
    close(found, by_hand(ORDERS["synchronous"], 5, 0.3))
    before = by_hand(ORDERS["synchronous"], 4, 0.3)
    np.testing.assert_allclose(residual, gap(before), rtol=1e-12)
    assert int(num_steps) == 5


def test_gradient_with_momentum():
    state, velocity = START, [np.zeros_like(s) for s in START]
    for _ in range(6):
        slopes = [a - b for a, b in zip(state, respond(state), strict=True)]
        velocity = [0.8 * v + g for v, g in zip(velocity, slopes, strict=True)]
        state = [s - 0.2 * v for s, v in zip(state, velocity, strict=True)]
    found, _, _ = solve(gradient(optax.sgd(0.2, momentum=0.8), 6))
    close(found, state)
    settled, residual, num_steps = solve(
        gradient(optax.sgd(0.2, momentum=0.8), 500, rtol=1e-9)
    )
    close([np.concatenate(settled, 1)], [solution()], 1e-8)
    assert int(num_steps) < 400
    assert residual <= 1e-9 * rms(settled)


def test_anderson_needs_far_fewer_steps():
    _, _, plain = solve(sweeps(2000, order="synchronous", rtol=1e-8))
    found, residual, num_steps = solve(anderson(2000, memory=6, rtol=1e-8))
    close([np.concatenate(found, 1)], [solution()], 1e-7)
    assert residual <= 1e-8 * rms(found)
    assert 3 * int(num_steps) < int(plain), (num_steps, plain)


def test_anderson_is_the_mixture_with_the_least_residual():
    """Two states in memory: a line search along their difference, by hand."""
    # The third application is at the mixture, and its image is what is returned.
    relaxation = anderson(3, memory=2, ridge=0.0, mixing=0.7)
    first = START
    gaps = [a - b for a, b in zip(respond(first), first, strict=True)]
    second = [s + 0.7 * g for s, g in zip(first, gaps, strict=True)]
    f, g = (
        np.concatenate(respond(s), 1) - np.concatenate(s, 1) for s in (first, second)
    )
    part = np.sum(f * (f - g), 1, keepdims=True)
    part = part / np.sum((f - g) ** 2, 1, keepdims=True)  # of the second state
    mixed = [
        (1 - part) * (a + 0.7 * (x - a)) + part * (b + 0.7 * (y - b))
        for a, x, b, y in zip(
            first, respond(first), second, respond(second), strict=True
        )
    ]
    found, residual, num_steps = solve(relaxation)
    close(found, respond(mixed), 1e-9)
    np.testing.assert_allclose(residual, gap(mixed), rtol=1e-9)
    assert int(num_steps) == 3


def test_anderson_of_an_example_does_not_know_the_others():
    scale = np.array([[0.1], [0.5], [1.2]])
    apply = lambda s, force: [jnp.tanh(scale * s[0]) + 0.3 - s[0] ** 2 / 4]
    solved = jax.jit(lambda s: anderson(6).solve(apply, [s], None).state[0])
    first = np.array([[0.1, -0.4], [0.3, 0.2], [3.0, -1.0]])
    other = np.array([[0.1, -0.4], [-2.0, 0.9], [40.0, 0.0]])
    a, b = solved(first), solved(other)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-10)
    assert np.all(np.abs(a[1:] - b[1:]) > 1e-6)  # not yet settled


SIGMA = 0.3


def noisy(state, force):
    """Units with the identity: their drive is 1, and the noise a force."""
    return [1 - force.get(k, 0) * jnp.ones_like(s) for k, s in enumerate(state)]


@pytest.mark.parametrize("make", [sweeps, functools.partial(gradient, optax.sgd(1.0))])
def test_noise_has_its_variance_and_follows_the_key(make):
    start = [np.zeros((100, 100)), np.zeros((100, 50))]
    relaxation = make(num_steps=4, noise=SIGMA)
    assert relaxation.noise == SIGMA
    walk = lambda state, force: [s - force.get(k, 0) for k, s in enumerate(state)]
    solved = jax.jit(lambda key: relaxation.solve(walk, start, key).state)
    first, again, other = (solved(jax.random.key(seed)) for seed in (0, 0, 1))
    close(again, first, 0)
    for s, t in zip(first, other, strict=True):
        for drawn in (np.asarray(s), np.asarray(t)):
            # Four fresh draws; 5000 and more: six of their standard errors.
            error = 6 / np.sqrt(drawn.size)
            assert abs(drawn.mean()) < 2 * SIGMA * error
            assert abs(drawn.std() / (2 * SIGMA) - 1) < error
        assert abs(np.corrcoef(s.ravel(), t.ravel())[0, 1]) < 6 / s.size**0.5
    layers = [np.ravel(s)[:5000] for s in first]
    assert abs(np.corrcoef(*layers)[0, 1]) < 6 / 5000**0.5


def test_noise_of_complex_states_is_in_both_parts():
    start = [np.zeros((100, 100), np.complex128)]
    (state,), _, _ = solve(sweeps(1, noise=SIGMA), jax.random.key(0), start, noisy)
    for part in (state.real - 1, state.imag):
        assert abs(part.mean()) < 0.06 * SIGMA
        assert abs(part.std() / SIGMA - 1) < 0.06
    assert abs(np.corrcoef(state.real.ravel(), state.imag.ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("rtol", [None, 1e-3])
@pytest.mark.parametrize(
    "make", [sweeps, functools.partial(gradient, optax.sgd(0.5)), anderson]
)
def test_dtypes_stay(make, rtol):
    for dtype in (jnp.bfloat16, jnp.float32):
        apply = lambda state, force: [jnp.tanh(s / 2) for s in state]
        state = [jnp.ones((2, 3), dtype)]
        solved = functools.partial(make(num_steps=3, rtol=rtol).solve, apply)
        found = jax.eval_shape(lambda s, f=solved: f(s, None), state)
        assert found.state[0].dtype == dtype
        assert found.residual.dtype == jnp.float32
        assert found.num_steps.dtype == jnp.int32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sweeps(0), "num_steps must be an integer >= 1, got 0"),
        (lambda: gradient(optax.sgd(1.0), 2.5), "num_steps must be .* got 2.5"),
        (lambda: anderson(-1), "num_steps must be an integer >= 1, got -1"),
        (lambda: sweeps(1, rtol=1.0), r"rtol must lie in \[0, 1\), got 1.0"),
        (lambda: anderson(1, rtol=float("nan")), r"rtol must lie in .* got nan"),
        (lambda: sweeps(1, noise=-0.1), "noise must be >= 0 and finite, got -0.1"),
        (lambda: sweeps(1, noise=float("inf")), "noise must be .* got inf"),
        (lambda: sweeps(1, step_size=0.0), r"step_size must lie in \(0, 1\], got 0.0"),
        (lambda: sweeps(1, step_size=[0.5, 1.1]), r"got \[0.5, 1.1\]"),
        (lambda: sweeps(1, step_size=float("nan")), "step_size must lie in .* got nan"),
        (lambda: sweeps(1, order="random"), "no order 'random'; there are synchronous"),
        (lambda: anderson(1, memory=0), "expected memory >= 1, .*memory=0"),
        (lambda: anderson(1, mixing=0.0), "mixing=0.0"),
        (lambda: anderson(1, ridge=-1.0), "ridge=-1.0"),
        (
            lambda: sweeps(1, step_size=[0.5, 0.5]).solve(respond, START, None),
            "expected one step size or 4, one for each layer, got 2",
        ),
        (
            lambda: sweeps(1, order=[[0, 1], [2]]).solve(respond, START, None),
            r"must hold every layer: expected \[0, 1, 2, 3\], got \[\[0, 1\], \[2\]\]",
        ),
        (
            lambda: sweeps(1, order=[[0, 1], [2, 3, 4]]).solve(respond, START, None),
            "must hold every layer",
        ),
        (lambda: gradient(optax.sgd(1.0), 1, noise=-1), "noise must be >= 0"),
        (
            lambda: sweeps(1, noise=0.1).solve(respond, START, None),
            r"state noise needs a key; call the rule as rule\(params, inputs",
        ),
        (
            lambda: gradient(optax.sgd(1.0), 1, noise=0.1).solve(respond, START, None),
            "state noise needs a key",
        ),
        (
            lambda: anderson(1).solve(respond, [1j * s for s in START], None),
            "anderson: complex states are not supported; use sweeps",
        ),
        (
            lambda: sweeps(1).solve(respond, np.ones(3), None),
            "a state must be a list, tuple or dict of arrays",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
