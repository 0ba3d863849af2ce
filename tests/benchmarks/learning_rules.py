"""What one training step of each learning rule costs: 784-256-256-10, batch 64, Adam.

    taskset -c 0 python tests/benchmarks/learning_rules.py [--rounds=40]

A step is one jitted call with donated state: the rule's value and gradient, the update
of `optax.adam`, and the new parameters, in float32.

    rule                        reference                                    goal
    back_propagation            jax.value_and_grad of a plain network        none
    dual_propagation            back_propagation                             1.05
    direct_feedback_alignment   back_propagation                             1.03
    equilibrium_propagation     by hand: explicit products, both nudges in   1.10
                                one batch of 128, two scans
    predictive_coding           by hand: a scan of jax.grad of the energy    1.10

Both hand-written steps form the first layer's drive once, since it is constant over
the sweeps.  "with aux" also returns how far the phases are from settled, on both sides.
Equilibrium propagation: hard sigmoid, 15 even-odd sweeps, then 15 for each sign of
beta; predictive coding: squared error, T gradient steps of the hidden states from the
forward pass.  Gradients are compared with those by hand, to 1e-4, before times are.

All programs run interleaved, in every round a block of steps each, after one that is
not timed, in an order drawn anew (in a fixed order equal programs differ by 2 to 6 %).
Ratios are medians of ratios within a round, of wall time and of CPU time (which a busy
machine disturbs less).  For other libraries see `learning_rules_peers.py`.

Seen under jax 0.10.2, ratios of CPU time: dual propagation 1.00 (1.02 with tanh),
direct feedback alignment 0.94, equilibrium propagation 1.03, predictive coding 1.02 (T
= 8) and 1.00 (T = 20); back-propagation took 1.35 ms, the last three 10.5, 3.3 and 5.7
ms.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

from bilevel import energy

SIZES, BATCH = (784, 256, 256, 10), 64
RATE = 1e-5  # small: the same batch at every step, and no unit must die
ALPHA, BETA = 0.5, 0.1
EP_SWEEPS, EP_BETA = 15, 0.2
PC_STEPS, PC_STEP_SIZE = (8, 20), 0.1
RTOL = 1e-4

Params = list[dict[str, jax.Array]]
Rule = Callable[[Any, jax.Array, jax.Array], tuple[Any, Any]]
"""`(params, inputs, targets) -> (what it reports, gradient)`."""


class Row(NamedTuple):
    """One program of the table.

    Attributes:
        name: of the row.
        rule: what is timed.
        params: it starts from.
        reference: the row its times are divided by.
        check: whether the two gradients are the same.
        goal: the largest ratio allowed.
    """

    name: str
    rule: Rule
    params: Any
    reference: str = ""
    check: bool = False
    goal: float | None = None


def half_square(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


def drive(layer: dict[str, jax.Array], s: jax.Array) -> jax.Array:
    return s @ layer["kernel"] + layer["bias"]


def back_propagation_by_hand(f: Callable[[jax.Array], jax.Array]) -> Rule:
    def loss(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        s = inputs
        for layer in params[:-1]:
            s = f(drive(layer, s))
        return jnp.mean(half_square(drive(params[-1], s), targets))

    return jax.value_and_grad(loss)


def equilibrium_propagation_by_hand(*, with_aux: bool) -> Rule:
    """Centred, 784-256-256-10 with explicit products."""
    f = lambda a: jnp.clip(a, 0, 1)

    def rule(params: Params, inputs: jax.Array, targets: jax.Array) -> Any:
        w2, w3 = params[1]["kernel"], params[2]["kernel"]
        b2, b3 = params[1]["bias"], params[2]["bias"]
        x = drive(params[0], inputs)  # the same at every sweep

        def settle(x: jax.Array, push: Any, part: Any, state: Any) -> Any:
            def sweep(state: Any, _: None) -> tuple[Any, None]:
                s1, s2, s3 = state
                s2 = f(s1 @ w2 + b2 + s3 @ w3.T)
                return (f(x + s2 @ w2.T), s2, (s2 @ w3 + b3 + push) * part), None

            before, _ = jax.lax.scan(sweep, state, None, length=EP_SWEEPS - 1)
            after, _ = sweep(before, None)
            return before, after

        start = tuple(jnp.zeros((BATCH, n), x.dtype) for n in SIZES[1:])
        before, free = settle(x, 0.0, 1.0, start)
        twice = lambda s: jnp.concatenate([s, s])
        sign = jnp.repeat(jnp.array([1.0, -1.0], x.dtype), BATCH)[:, None]
        push, part = EP_BETA * sign * twice(targets), 1 / (1 + EP_BETA * sign)
        start = tuple(twice(s) for s in free)
        nudged_before, nudged = settle(twice(x), push, part, start)
        s1, s2, _ = nudged
        scale = 1 / (2 * EP_BETA * BATCH)
        g1, g2, g3 = (-scale * sign * s for s in nudged)
        g1 = g1[:BATCH] + g1[BATCH:]
        grads = [
            {"kernel": below.T @ g, "bias": jnp.sum(g, axis=0)}
            for below, g in ((inputs, g1), (s1, g2), (s2, g3))
        ]
        value = jnp.mean(half_square(free[-1], targets))
        if not with_aux:
            return value, grads
        positive = lambda states: [s[:BATCH] for s in states]
        negative = lambda states: [s[BATCH:] for s in states]
        residuals = jnp.stack(
            [
                distance(half(nudged_before), half(nudged))
                for half in (positive, negative)
            ]
        )
        moved = distance(start, nudged)
        return (value, distance(before, free), jnp.max(residuals), moved), grads

    return rule


def distance(before: Any, after: Any) -> jax.Array:
    squares = [jnp.sum((x - y) ** 2) for x, y in zip(before, after, strict=True)]
    return jnp.sqrt(sum(squares) / sum(x.size for x in after))


def predictive_coding_by_hand(f: Callable[[jax.Array], jax.Array], steps: int) -> Rule:
    def rule(params: Params, inputs: jax.Array, targets: jax.Array) -> Any:
        first = f(drive(params[0], inputs))  # the same at every step

        def total(params: Params, states: Any, first: jax.Array) -> jax.Array:
            errors = jnp.sum((states[0] - first) ** 2) / 2
            for layer, below, s in zip(
                params[1:], states, [*states[1:], None], strict=True
            ):
                a = drive(layer, below)
                if s is None:
                    errors += jnp.sum(half_square(a, targets))
                else:
                    errors += jnp.sum((s - f(a)) ** 2) / 2
            return errors

        states = [first]
        for layer in params[1:-1]:
            states.append(f(drive(layer, states[-1])))
        value = jnp.mean(half_square(drive(params[-1], states[-1]), targets))

        def step(states: Any, _: None) -> tuple[Any, None]:
            slopes = jax.grad(total, argnums=1)(params, states, first)
            move = lambda s, slope: s - PC_STEP_SIZE * slope
            return jax.tree.map(move, states, slopes), None

        states, _ = jax.lax.scan(step, states, None, length=steps)
        mean = lambda params: (
            total(params, states, f(drive(params[0], inputs))) / len(inputs)
        )
        return value, jax.grad(mean)(params)

    return rule


def of_library(rule: energy.LearningRule, *, with_aux: bool = False) -> Rule:
    def value_and_grad(params: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        (value, aux), grads = rule(params, inputs, targets)
        if with_aux:
            value = (value, aux.free_residual, aux.nudged_residual, aux.displacement)
        return value, grads

    return value_and_grad


def rows(activation: str) -> list[Row]:
    layers = [linen.Dense(n) for n in SIZES[1:]]
    cost = energy.squared_error()
    network = energy.feedforward(layers, activation)
    f = network.activation.apply
    key, inputs = jax.random.key(0), jnp.zeros((1, SIZES[0]))
    params = network.init(key, inputs)
    dual = energy.dual_propagation(network, cost, alpha=ALPHA, beta=BETA)
    direct = energy.direct_feedback_alignment(network, cost)
    aligned = direct.init(key, inputs)._replace(forward=params)
    unit = "back_propagation"
    found = [
        Row("bp by hand", back_propagation_by_hand(f), params),
        Row(
            unit,
            of_library(energy.back_propagation(network, cost)),
            params,
            "bp by hand",
            check=True,
        ),
        Row("dual_propagation", of_library(dual), params, unit, goal=1.05),
        Row("direct_feedback_alignment", of_library(direct), aligned, unit, goal=1.03),
    ]
    hopfield = energy.networks.hopfield(energy.feedforward(layers, "hard_sigmoid"))
    rule = energy.equilibrium_propagation(
        hopfield, cost, energy.relaxations.sweeps(EP_SWEEPS), beta=EP_BETA
    )
    for with_aux in (False, True):
        suffix = " with aux" if with_aux else ""
        hand, name = f"ep by hand{suffix}", f"equilibrium_propagation{suffix}"
        by_hand = equilibrium_propagation_by_hand(with_aux=with_aux)
        by_library = of_library(rule, with_aux=with_aux)
        found += [
            Row(hand, by_hand, params, "bp by hand"),
            Row(name, by_library, params, hand, check=True, goal=1.1),
        ]
    for steps in PC_STEPS:
        hand, by_hand = f"pc by hand T={steps}", predictive_coding_by_hand(f, steps)
        found.append(Row(hand, by_hand, params, "bp by hand"))
        inference = energy.relaxations.sweeps(
            steps, order="synchronous", step_size=PC_STEP_SIZE
        )
        rule = energy.predictive_coding(network, cost, inference)
        name = f"predictive_coding T={steps}"
        found.append(Row(name, of_library(rule), params, hand, check=True, goal=1.1))
    return found


def training_step(rule: Rule) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    optimizer = optax.adam(RATE)

    def step(state: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        params, moments = state
        report, grads = rule(params, inputs, targets)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), report

    def start(params: Any) -> Any:
        params = jax.tree.map(jnp.copy, params)  # the step is given them to overwrite
        return params, optimizer.init(params)

    return start, jax.jit(step, donate_argnums=0)


def data() -> tuple[jax.Array, jax.Array]:
    """Inputs in [0, 1] with four of five zero, as in pictures of digits."""
    rng = np.random.default_rng(0)
    inputs = rng.random((BATCH, SIZES[0])) * (rng.random((BATCH, SIZES[0])) < 0.2)
    onehot = np.eye(SIZES[-1])[rng.integers(SIZES[-1], size=BATCH)]
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(onehot, jnp.float32)


def check(table: list[Row], batch: tuple[jax.Array, jax.Array]) -> None:
    """Raises unless every checked gradient and report is that by hand."""
    found = {row.name: jax.jit(row.rule)(row.params, *batch) for row in table}
    for row in table:
        if not row.check:
            continue
        got, expected = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(found[name][1])])
            for name in (row.name, row.reference)
        )
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        print(f"{row.name:33} gradient differs from that by hand by {error:.1e}")
        if not error <= RTOL:
            raise AssertionError(f"{row.name}: expected at most {RTOL:.0e}")
        got, expected = (
            np.array(jax.tree.leaves(found[name][0]))
            for name in (row.name, row.reference)
        )
        # Residuals near rounding are compared against the largest entry.
        np.testing.assert_allclose(got, expected, atol=RTOL * np.max(np.abs(expected)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=5, help="in a row, of each rule")
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--only", default="", help="part of the names of the rows")
    options = parser.parse_args()
    batch = data()
    table = rows(options.activation)
    check(table, batch)
    kept = {row.name for row in table if options.only in row.name}
    kept |= {row.reference for row in table if row.name in kept}
    table = [row for row in table if row.name in kept]

    steps, states, first = {}, {}, {}
    for row in table:
        start, step = training_step(row.rule)
        before = time.perf_counter()
        states[row.name], _ = jax.block_until_ready(step(start(row.params), *batch))
        first[row.name] = time.perf_counter() - before
        steps[row.name] = step
    load_before = os.getloadavg()[0]
    times: dict[str, Any] = {row.name: [] for row in table}
    order = np.random.default_rng(0)
    for _ in range(options.rounds):
        for name in order.permutation(list(steps)):
            step = steps[name]
            # Not timed: it finds in the caches what the row before left there.
            state, _ = jax.block_until_ready(step(states[name], *batch))
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(options.steps):
                state, report = step(state, *batch)
                jax.block_until_ready((state, report))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            states[name] = state
            times[name].append((1e3 * wall / options.steps, 1e3 * cpu / options.steps))
    show(table, {name: np.array(pairs).T for name, pairs in times.items()}, first)
    cpus = len(os.sched_getaffinity(0))
    print(
        f"jax {jax.__version__}, {jax.default_backend()}, {cpus} core(s), load "
        f"{load_before:.1f} to {os.getloadavg()[0]:.1f}, activation "
        f"{options.activation}, {options.rounds} rounds of {options.steps} steps"
    )


def show(
    table: list[Row], times: dict[str, np.ndarray], first: dict[str, float]
) -> None:
    print(
        f"{'':33} {'wall ms':>8} {'min to max':>14} {'ratio':>6} | {'cpu ms':>7} "
        f"{'ratio':>6} | {'goal':>5} {'first s':>8}  {'of':8}"
    )
    for row in table:
        wall, cpu = times[row.name]
        reference = row.reference if row.reference in times else row.name
        base_wall, base_cpu = times[reference]
        spread = f"{wall.min():.2f} to {wall.max():.2f}"
        goal = "" if row.goal is None else f"{row.goal:.2f}"
        print(
            f"{row.name:33} {np.median(wall):8.3f} {spread:>14} "
            f"{np.median(wall / base_wall):6.3f} | {np.median(cpu):7.3f} "
            f"{np.median(cpu / base_cpu):6.3f} | {goal:>5} {first[row.name]:8.2f}  "
            f"{reference}"
        )


if __name__ == "__main__":
    main()
