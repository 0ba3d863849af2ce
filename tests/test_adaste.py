"""The binary weights of the example against the closed form of AdaSTE.

The table is that of Le et al. 2022 (arXiv:2112.02880, equation 10) in its clean form:
G(w, x) = (w - x)^2 / 2 + rho/2 (|w| - 1 - alpha)^2 on [-1, 1], b = alpha rho.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "binary_weights.py"


@pytest.fixture
def example() -> Any:
    """The example as a module of its own, without a floor for its nudges."""
    spec = importlib.util.spec_from_file_location("binary_weights", EXAMPLE)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    module.FLOOR = 0.0
    return module


def multiplier(example, rho, alpha, x, g):
    """h / g, elementwise, of the gradient h of <g, w*(x)>."""
    x, g = jnp.asarray(x), jnp.asarray(g)
    weights = lambda x: example.solve(jnp.zeros_like(x), x, (rho, alpha))[0]
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(g * weights(x))))
    return np.asarray(gradient(x) / g)


def closed_form_multiplier(rho, alpha, x, g):
    b, size = alpha * rho, abs(x)
    if x * g > 0:
        if b >= 1:
            return 2 / size
        if size >= 1 - b:
            return (1 + 2 * rho + b) / ((1 + rho) * size)
        return (2 * rho * (1 + alpha) + size) / ((1 + rho) * size)
    return 1 / (1 + rho) if b < 1 and size < 1 - b else 0.0


# (rho, alpha) -> rows of x, g, s(x), h / g
TABLE = {
    (0.01, 0.01): [
        (0.3, 0.7, 0.3070, 1.0568),
        (-0.3, -0.7, -0.3070, 1.0568),
        (0.3, -0.7, 0.3070, 0.9901),
        (2.0, -1.0, 1.0, 0.0),
        (2.0, 1.0, 1.0, 0.5050),
    ],
    (4.0, 0.1): [
        (0.3, 0.7, 0.94, 6.0667),
        (0.3, -0.7, 0.94, 0.2),
        (2.0, 1.0, 1.0, 0.94),
        (2.0, -1.0, 1.0, 0.0),
        (-1.4, -0.2, -1.0, 1.3429),
    ],
    (100.0, 0.01): [
        (0.3, 0.7, 1.0, 6.6667),
        (0.3, -0.7, 1.0, 0.0),
        (4.0, 1.0, 1.0, 0.5),
    ],
}


@pytest.mark.parametrize(("rho", "alpha"), TABLE)
def test_published_table(example, rho, alpha):
    x, g, weights, ratios = np.array(TABLE[rho, alpha]).T
    got = jax.jit(example.solve)(jnp.zeros_like(x), x, (rho, alpha))[0]
    np.testing.assert_allclose(got, weights, atol=5e-5)  # the table has four decimals
    got = multiplier(example, rho, alpha, x, g)
    np.testing.assert_allclose(got, ratios, atol=5e-5)


@pytest.mark.parametrize(
    ("rho", "alpha"), [(0.01, 0.01), (1.0, 0.5), (4.0, 0.1), (10.0, 0.2), (200.0, 0.01)]
)
def test_multiplier_equals_its_closed_form(example, rho, alpha):
    rng = np.random.default_rng(0)
    x, g = rng.normal(scale=1.2, size=(2, 300))
    pairs = zip(x, g, strict=True)
    expected = [closed_form_multiplier(rho, alpha, *pair) for pair in pairs]
    got = multiplier(example, rho, alpha, x, g)
    # The nudge goes one rounding unit past the boundary.
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


def test_floor_bounds_the_multiplier(example):
    x = jnp.array([1e-6, -1e-3, 0.4, 2.0])
    example.FLOOR = 0.5
    got = multiplier(example, 200.0, 0.01, x, jnp.sign(x))
    np.testing.assert_allclose(got, [4.0, 4.0, 4.0, 1.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("rho", "alpha"), [(0.01, 0.01), (1.0, 0.5), (50.0, 0.01), (10.0, 0.2)]
)
def test_bottom_is_the_argmin_of_the_tilted_energy(example, rho, alpha):
    # Values of the energy on a grid that holds its minima to 1e-5.
    grid = np.linspace(-1, 1, 200_001)
    well = rho / 2 * (abs(grid) - 1 - alpha) ** 2
    x, tilt = np.meshgrid([-1.7, -0.4, 0.05, 0.6, 1.3], [0.0, 0.3, -0.9])
    pairs = zip(x.flat, tilt.flat, strict=True)
    expected = [
        grid[np.argmin((grid - a) ** 2 / 2 + b * grid + well)] for a, b in pairs
    ]
    got = example.bottom(None, x, (rho, alpha), tilt)
    np.testing.assert_allclose(got.ravel(), expected, atol=1e-5)
    energy = example.well(grid[:9], np.full(9, 0.6), (rho, alpha))
    np.testing.assert_allclose(energy, np.sum((grid[:9] - 0.6) ** 2 / 2 + well[:9]))


def test_weights_are_exactly_binary_at_the_end(example):
    with jax.enable_x64(False):
        x = jax.random.normal(jax.random.key(0), (10_000,), jnp.float32)
        x = jnp.concatenate([x, 1e-6 * x, jnp.zeros(1)])
        w = example.binary([x], example.RHO)[0]
        assert w.dtype == jnp.float32
        np.testing.assert_array_equal(w, np.where(x >= 0, 1, -1))
