"""Loops as functions, against Python loops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel.iteration import iterate, iterate_recorded

MATRIX = jnp.array([[0.9, 0.2], [-0.3, 0.8]])


def step(state: dict[str, Any]) -> dict[str, Any]:
    """A step that neither commutes with itself nor is linear."""
    w = jnp.tanh(MATRIX @ state["w"]) + state["bias"]
    return {"w": w, "bias": state["bias"]}


def start(bias: jax.Array) -> dict[str, Any]:
    return {"w": jnp.array([1.0, -0.5]), "bias": bias}


def python_loop(bias: jax.Array, num_steps: int) -> jax.Array:
    state = start(bias)
    for _ in range(num_steps):
        state = step(state)
    return jnp.sum(state["w"] ** 2)


@pytest.mark.parametrize("num_steps", [0, 1, 4, 11])
@pytest.mark.parametrize("rematerialize", ["none", "step", "segments"])
def test_values_and_gradients_of_all_modes(num_steps: int, rematerialize: Any):
    def loss(bias: jax.Array) -> jax.Array:
        state = iterate(
            step, start(bias), num_steps=num_steps, rematerialize=rematerialize
        )
        return jnp.sum(state["w"] ** 2)

    bias = jnp.array([0.1, 0.2])
    value, gradient = jax.jit(jax.value_and_grad(loss))(bias)
    expected = jax.value_and_grad(python_loop)(bias, num_steps)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-13)
    tangent = jax.jvp(loss, (bias,), (jnp.ones(2),))[1]
    np.testing.assert_allclose(tangent, jnp.sum(expected[1]), rtol=1e-13, atol=1e-14)


def test_rematerialisation_stores_less():
    def thrice(state: Any) -> Any:
        return step(step(step(state)))

    def residuals(rematerialize: Any) -> int:
        def last(bias: jax.Array) -> jax.Array:
            state = iterate(
                thrice, start(bias), num_steps=64, rematerialize=rematerialize
            )
            return state["w"]

        _, pull = jax.vjp(last, jnp.array([0.1, 0.2]))
        return sum(x.size for x in jax.tree.leaves(pull))

    plain, steps, segments = map(residuals, ("none", "step", "segments"))
    assert segments < steps < plain
    # About 2 sqrt(64) states of two numbers against 64, and what all share.
    assert segments <= steps / 3


@pytest.mark.parametrize("num_steps", [0, 3, 9])
def test_history_stacks_the_outputs(num_steps: int):
    state, outputs = iterate(
        lambda s: (step(s), {"before": s["w"]}),
        start(jnp.zeros(2)),
        num_steps=num_steps,
        history=True,
    )
    expected, state_expected = [], start(jnp.zeros(2))
    for _ in range(num_steps):
        expected.append(state_expected["w"])
        state_expected = step(state_expected)
    assert outputs["before"].shape == (num_steps, 2)
    if num_steps:
        np.testing.assert_allclose(outputs["before"], jnp.stack(expected), rtol=1e-14)
    np.testing.assert_allclose(state["w"], state_expected["w"], rtol=1e-14)


def test_history_with_rematerialisation_is_differentiable():
    def loss(bias: jax.Array, rematerialize: Any) -> jax.Array:
        _, outputs = iterate(
            lambda s: (step(s), s["w"]),
            start(bias),
            num_steps=9,
            history=True,
            rematerialize=rematerialize,
        )
        return jnp.sum(outputs**2)

    gradients = [
        jax.grad(loss)(jnp.array([0.1, 0.2]), mode)
        for mode in ("none", "step", "segments")
    ]
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-14)
    np.testing.assert_allclose(gradients[2], gradients[0], rtol=1e-14)


def test_iterate_until_stops_at_the_criterion_and_at_the_cap():
    def halve(x: jax.Array) -> jax.Array:
        return x / 2

    def small(x: jax.Array) -> jax.Array:
        return ~(x > 0.1)

    x, steps = bilevel.iterate_until(halve, jnp.asarray(1.0), small, max_steps=50)
    assert (float(x), int(steps)) == (0.0625, 4)
    x, steps = bilevel.iterate_until(halve, jnp.asarray(1.0), small, max_steps=2)
    assert (float(x), int(steps)) == (0.25, 2)
    x, steps = bilevel.iterate_until(halve, jnp.asarray(0.05), small, max_steps=2)
    assert (float(x), int(steps)) == (0.05, 0)
    assert steps.dtype == jnp.int32


def test_iterate_until_stops_on_nan():
    def spoil(x: jax.Array) -> jax.Array:
        return jnp.where(x < 3, x + 1, jnp.nan)

    x, steps = bilevel.iterate_until(
        spoil, jnp.asarray(1.0), lambda x: ~(x > 0.0), max_steps=1000
    )
    assert jnp.isnan(x)
    assert int(steps) == 3


def test_iterate_until_freezes_the_lanes_that_are_done():
    def lane(x: jax.Array) -> Any:
        return bilevel.iterate_until(
            lambda s: s * 2.0, x, lambda s: s > 100.0, max_steps=20
        )

    starts = jnp.array([1.0, 60.0, 500.0, jnp.nan])
    states, steps = jax.jit(jax.vmap(lane))(starts)
    np.testing.assert_array_equal(states[:3], [128.0, 120.0, 500.0])
    # NaN > 100 is false: that lane runs to the cap, and it alone says so.
    np.testing.assert_array_equal(steps, [7, 1, 0, 20])


def test_iterate_until_is_differentiable_in_forward_mode():
    def root(a: jax.Array) -> jax.Array:
        return bilevel.iterate_until(
            lambda x: (x + a / x) / 2,
            jnp.ones_like(a),
            lambda x: ~(jnp.abs(x * x - a) > 1e-13),
            max_steps=20,
        )[0]

    np.testing.assert_allclose(jax.jacfwd(root)(4.0), 0.25, rtol=1e-6)


@pytest.mark.parametrize("value", [-1, 2.0, None])
def test_numbers_of_steps_are_checked(value: Any):
    with pytest.raises(ValueError, match="num_steps must be an integer >= 0"):
        iterate(lambda s: s, 0.0, num_steps=value)
    with pytest.raises(ValueError, match="max_steps must be an integer >= 0"):
        bilevel.iterate_until(lambda s: s, 0.0, lambda s: s > 0, max_steps=value)


def test_unknown_memory_mode_is_refused():
    with pytest.raises(ValueError, match="rematerialize must be"):
        iterate(lambda s: s, 1.0, num_steps=2, rematerialize="bogus")  # type: ignore


@pytest.mark.parametrize("num_steps", [10, 25, 35, 100])
def test_p4_segments_are_a_small_program_at_every_length(num_steps: int):
    """Of the size of "step", whether segments are of few steps or of many."""

    def lines(rematerialize: Any) -> int:
        def loss(bias: jax.Array) -> jax.Array:
            state = iterate(
                step, start(bias), num_steps=num_steps, rematerialize=rematerialize
            )
            return jnp.sum(state["w"] ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros(2)).compile()
        return len(compiled.as_text().splitlines())

    assert lines("segments") <= 3 * lines("step")


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_recorded_steps_are_those_of_the_loop(num_steps: int):
    def recorded(state: Any) -> Any:
        return step(state), {"w": state["w"], "sum": jnp.sum(state["w"]), "one": 1}

    def many(length: Any) -> Any:
        first = start(jnp.array([0.1, 0.2]))
        return iterate_recorded(recorded, first, num_steps=length, capacity=3)

    state, outputs = jax.jit(many)(num_steps)
    eager = many(num_steps)
    expected, rows = start(jnp.array([0.1, 0.2])), []
    for _ in range(num_steps):
        rows.append(expected["w"])
        expected = step(expected)
    np.testing.assert_allclose(state["w"], expected["w"], rtol=1e-14)
    written = np.array(rows).reshape(-1, 2)
    np.testing.assert_allclose(outputs["w"][:num_steps], written, rtol=1e-14)
    np.testing.assert_allclose(outputs["sum"][:num_steps], written.sum(1), rtol=1e-14)
    np.testing.assert_array_equal(outputs["one"], np.arange(3) < num_steps)
    assert not np.any(outputs["w"][num_steps:])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14),
        (state, outputs),
        eager,
    )


@pytest.mark.parametrize(
    ("num_steps", "capacity", "message"),
    [(4, 3, "at most"), (-1, 3, "num_steps"), (0, 0, "capacity"), (1.5, 3, "num_ste")],
)
def test_recorded_counts_are_checked(num_steps: Any, capacity: int, message: str):
    first = start(jnp.zeros(2))
    with pytest.raises(ValueError, match=message):
        iterate_recorded(
            lambda s: (step(s), 0), first, num_steps=num_steps, capacity=capacity
        )
