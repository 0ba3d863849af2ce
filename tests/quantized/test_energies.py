"""Each quantiser that claims to be an argmin, held against its energy on a grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import number_formats, quantized
from bilevel.quantized import energies
from bilevel.quantized.levels import levels_of
from bilevel.quantized.quantizer import At

FORMATS = {
    "binary": number_formats.binary(),
    "ternary": number_formats.ternary(),
    "posit<4,1>": number_formats.posit(4, 1),
    "uneven": number_formats.codebook([-1.0, -0.2, 0.1, 2.0]),
}
AT = At(jnp.zeros((), jnp.int32))

# An energy by the levels, the strengths, and the quantiser that is its argmin.
ROWS = {
    "well": (
        lambda levels: energies.well(levels, alpha=0.05),
        (0.1, 2.0, 30.0),
        lambda f, rho: quantized.adaste(f, rho, alpha=0.05).quantize,
    ),
    "distance, l1": (
        lambda levels: energies.distance(levels, "l1"),
        (0.05, 0.3),
        lambda f, strength: projected(quantized.proxquant(f, strength)),
    ),
    "distance, l2": (
        lambda levels: energies.distance(levels, "l2"),
        (0.05, 3.0),
        lambda f, strength: projected(quantized.proxquant(f, strength, form="l2")),
    ),
    "entropy": (
        energies.entropy,
        (0.5, 2.0, 8.0),
        lambda f, kappa: quantized.tanh_projection(f, kappa).quantize,
    ),
    "entropy, mirror descent": (
        energies.entropy,
        (2.0,),
        lambda f, kappa: quantized.mirror_descent_tanh(f, kappa).quantize,
    ),
}
CELLS = [
    pytest.param(row, name, id=f"{row}, {name}") for row in ROWS for name in FORMATS
]


def projected(quantizer: Any) -> Any:
    return lambda x, learned, at: quantizer.project(x, at)


def latents(levels: Any) -> jax.Array:
    """Beyond both ends, at every level and boundary, and between."""
    least, most = levels.values[0], levels.values[-1]
    random = np.random.default_rng(0).uniform(least - 1, most + 1, 40)
    return jnp.asarray(np.concatenate([random, levels.values, levels.boundaries]))


@pytest.mark.parametrize(("row", "name"), CELLS)
def test_no_weight_of_a_grid_has_less_energy(row: str, name: str):
    make, strengths, _ = ROWS[row]
    levels = levels_of(FORMATS[name])
    energy, x = make(levels), latents(levels)
    grid = jnp.linspace(levels.values[0] - 1, levels.values[-1] + 1, 4001)
    for strength in strengths:
        best = energy.minimiser(x, jnp.asarray(strength))
        least = energy.value(best, x, jnp.asarray(strength))
        others = energy.value(grid[:, None], x[None], jnp.asarray(strength))
        assert bool(jnp.all(jnp.isfinite(least)))
        lowest = jnp.min(others, axis=0)
        assert float(jnp.max(least - lowest)) <= 1e-12 * float(levels.values[-1] + 2)
        # And the grid finds it, to the square of its step and the curvature.
        assert float(jnp.max(lowest - least)) <= 0.02 * (1 + strength)


@pytest.mark.parametrize(("row", "name"), CELLS)
def test_the_quantiser_is_the_argmin(row: str, name: str):
    make, strengths, quantize = ROWS[row]
    levels = levels_of(FORMATS[name])
    x = latents(levels)
    for strength in strengths:
        got = quantize(FORMATS[name], strength)(x, (), AT)
        expected = make(levels).minimiser(x, jnp.asarray(strength))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_entropy_is_stationary_at_the_argmin(name: str):
    """Psi'(s(x)) / kappa = x, by differentiation of the energy in w."""
    levels = levels_of(FORMATS[name])
    energy, kappa = energies.entropy(levels), jnp.array(2.0)
    x = jnp.linspace(levels.boundaries[0] - 1, levels.boundaries[-1] + 1, 31)
    w = energy.minimiser(x, kappa)
    slope = jax.vmap(jax.grad(energy.finite), in_axes=(0, 0, None))(w, x, kappa)
    np.testing.assert_allclose(slope, 0, atol=1e-10)
    if name == "binary":
        w = jnp.linspace(-0.99, 0.99, 21)
        plus, minus = (1 + w) * jnp.log1p(w), (1 - w) * jnp.log1p(-w)
        published = (plus + minus) / 2 / kappa
        np.testing.assert_allclose(
            energy.finite(w, 0 * w, kappa), published, atol=1e-12
        )


def test_simplex_is_the_argmin_of_its_energy():
    energy, kappa = energies.simplex_entropy(), jnp.array(3.0)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(20, 4)))
    best = energy.minimiser(x, kappa)
    np.testing.assert_array_equal(best, jax.nn.softmax(kappa * x))
    least = energy.value(best, x, kappa)
    others = jnp.asarray(rng.dirichlet(np.ones(4), size=3000))
    values = energy.value(others[:, None], x[None], kappa)
    assert float(jnp.max(least - jnp.min(values, axis=0))) <= 0
    # The value is the conjugate, -log sum exp(kappa x) / kappa.
    conjugate = -jax.nn.logsumexp(kappa * x, -1) / kappa
    np.testing.assert_allclose(least, conjugate, rtol=1e-12)


def test_infinite_where_no_weight_may_be():
    levels, one = levels_of(FORMATS["ternary"]), jnp.array(1.0)
    for make in (lambda l: energies.well(l, 0.1), energies.entropy):
        energy = make(levels)
        for w in (-1.001, 1.001):
            assert bool(jnp.isinf(energy.value(jnp.array(w), one, one)))
        assert bool(
            jnp.all(jnp.isfinite(energy.value(jnp.array([-1.0, 1.0]), one, one)))
        )
    energy = energies.simplex_entropy()
    for u in ([0.5, 0.6], [-0.1, 1.1]):
        assert bool(jnp.isinf(energy.value(jnp.array(u), jnp.zeros(2), one)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_dtypes_pull_back_at_the_ends(dtype: Any):
    """Where rounding puts a weight beyond the end, the pull-back is not zero."""
    levels = FORMATS["uneven"]
    for quantizer in (
        quantized.tanh_projection(levels, 2.0),
        quantized.softmax_projection(levels, 2.0),
    ):
        real = jnp.linspace(-1.5, 2.5, 64, dtype=dtype)
        x = quantizer.start(real, None)
        w, pull = jax.vjp(lambda x, q=quantizer: q.quantize(x, (), AT), x)
        assert w.dtype == dtype
        slopes = pull(jnp.ones_like(w))[0]
        assert bool(jnp.all(jnp.isfinite(slopes)))
        if x.ndim == 2:  # of a softmax, between two levels no slope is zero
            assert bool(jnp.all(jnp.max(jnp.abs(slopes), -1) > 0))
