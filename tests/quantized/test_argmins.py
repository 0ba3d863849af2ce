"""Quantisers that are argmins: the energy, the nudge, the limits, published tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantized.quantizers import BINARY, POSIT, TERNARY, at

from bilevel import number_formats, quantized

UNEVEN = number_formats.codebook([-1.5, -0.5, 0.0, 0.3, 2.0])
X = np.random.default_rng(0).normal(scale=1.2, size=60)
G = np.random.default_rng(1).normal(size=60)


def weights_of(quantizer, x, step=0):
    return jax.jit(lambda x: quantizer.quantize(x, (), at(step)))(jnp.asarray(x))


def pulled(quantizer, x, g, step=0):
    """h, the pull-back of a cotangent g."""

    def pull(x, g):
        return jax.vjp(lambda x: quantizer.quantize(x, (), at(step)), x)[1](g)[0]

    return np.asarray(jax.jit(pull)(jnp.asarray(x), jnp.asarray(g)))


def grid_argmin(energy, x, least, most, num=100_001):
    """The argmin over w of energy(w, x), for each x, on a grid."""
    grid = np.linspace(least, most, num)
    return np.array([grid[np.argmin(energy(grid, one))] for one in x])


def distance(w, levels):
    """To the nearest level."""
    return np.min(np.abs(w[:, None] - np.asarray(levels)), -1)


# rho, alpha
STRENGTHS = [(0.01, 0.01), (1.0, 0.5), (4.0, 0.1), (10.0, 0.2), (50.0, 0.01)]


@pytest.mark.parametrize("levels", [BINARY, TERNARY, UNEVEN], ids=lambda f: f.name)
@pytest.mark.parametrize(("rho", "alpha"), STRENGTHS)
def test_adaste_is_the_argmin_of_its_energy(levels, rho, alpha):
    values = levels.levels()

    def energy(w, x):
        return (w - x) ** 2 / 2 + rho / 2 * (distance(w, values) + alpha) ** 2

    x = X[:12]
    expected = grid_argmin(energy, x, values[0], values[-1])
    got = weights_of(quantized.adaste(levels, rho, alpha=alpha), x)
    np.testing.assert_allclose(got, expected, atol=5e-5)


def test_adaste_is_the_published_energy_for_binary_weights():
    w = np.linspace(-1, 1, 1001)
    ours = (distance(w, [-1, 1]) + 0.3) ** 2
    np.testing.assert_allclose(ours, (abs(w) - 1 - 0.3) ** 2, rtol=1e-14)


def closed_form_multiplier(rho, alpha, x, g):
    """h / g of binary weights."""
    b, size = alpha * rho, abs(x)
    if x * g > 0:
        if b >= 1:
            return 2 / size
        if size >= 1 - b:
            return (1 + 2 * rho + b) / ((1 + rho) * size)
        return (2 * rho * (1 + alpha) + size) / ((1 + rho) * size)
    return 1 / (1 + rho) if b < 1 and size < 1 - b else 0.0


# (rho, alpha) -> rows of x, g, s(x), h / g, and the latter as released
TABLE = {
    (0.01, 0.01): [
        (0.3, 0.7, 0.3070, 1.0568, 0.0),
        (-0.3, -0.7, -0.3070, 1.0568, 0.5),
        (0.3, -0.7, 0.3070, 0.9901, 0.9901),
        (2.0, -1.0, 1.0, 0.0, 0.0),
        (2.0, 1.0, 1.0, 0.5050, 0.5),
    ],
    (4.0, 0.1): [
        (0.3, 0.7, 0.94, 6.0667, 0.5),
        (0.3, -0.7, 0.94, 0.2, 0.2),
        (2.0, 1.0, 1.0, 0.94, 0.5),
        (2.0, -1.0, 1.0, 0.0, 0.0),
        (-1.4, -0.2, -1.0, 1.3429, 0.5),
    ],
    (100.0, 0.01): [
        (0.3, 0.7, 1.0, 6.6667, 0.5),
        (0.3, -0.7, 1.0, 0.0, 0.0),
        (4.0, 1.0, 1.0, 0.5, 0.25),
    ],
}


@pytest.mark.parametrize(("rho", "alpha"), TABLE)
def test_adaste_table(rho, alpha):
    x, g, weights, ratios, released = np.array(TABLE[rho, alpha]).T
    clean = quantized.adaste(BINARY, rho, alpha=alpha, floor=0.0)
    np.testing.assert_allclose(weights_of(clean, x), weights, atol=5e-5)
    np.testing.assert_allclose(pulled(clean, x, g) / g, ratios, atol=5e-5)
    own = quantized.adaste(BINARY, rho, alpha=alpha, as_released=True)
    np.testing.assert_allclose(weights_of(own, x), weights, atol=5e-5)
    np.testing.assert_allclose(pulled(own, x, g) / g, released, atol=5e-5)


@pytest.mark.parametrize(("rho", "alpha"), [*STRENGTHS, (200.0, 0.01)])
def test_adaste_multiplier_equals_its_closed_form(rho, alpha):
    quantizer = quantized.adaste(BINARY, rho, alpha=alpha, floor=0.0)
    pairs = zip(X, G, strict=True)
    expected = [closed_form_multiplier(rho, alpha, *pair) for pair in pairs]
    np.testing.assert_allclose(pulled(quantizer, X, G) / G, expected, rtol=1e-12)


def test_as_released_ignores_small_gradients():
    x, g = np.array([0.3, 0.3, 4.0]), np.array([9e-4, -9e-4, 9e-4])
    wells = quantized.adaste(BINARY, 4.0, alpha=0.1, as_released=True)
    np.testing.assert_allclose(pulled(wells, x, g) / g, 0.2, rtol=1e-12)
    late = quantized.adaste(BINARY, 100.0, as_released=True)
    np.testing.assert_allclose(pulled(late, x, g) / g, 1.0, rtol=1e-12)
    with pytest.raises(ValueError, match="knows binary weights only"):
        quantized.adaste(TERNARY, as_released=True)


@pytest.mark.parametrize("levels", [BINARY, UNEVEN, POSIT], ids=lambda f: f.name)
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize(("rho", "alpha"), [(4.0, 0.1), (100.0, 0.05)])
@pytest.mark.thinned(3)
def test_adaste_gradient_is_the_finite_difference_across_the_boundary(
    levels, floor, rho, alpha
):
    quantizer = quantized.adaste(levels, rho, alpha=alpha, floor=floor)
    values, s = levels.levels(), lambda x: np.asarray(weights_of(quantizer, x))
    middle = (values[1:] + values[:-1]) / 2
    next_one = np.searchsorted(middle, X, side="right") - (G > 0)
    exists = (next_one >= 0) & (next_one < len(middle))
    next_one = np.clip(next_one, 0, len(middle) - 1)
    half = np.diff(values)[next_one] / 2
    length = np.maximum(abs(X - middle[next_one]) * (1 + 1e-12), floor * half)
    t = np.sign(G) * length
    assert np.all(((X - t - middle[next_one]) * (X - middle[next_one]) <= 0) | ~exists)
    crossing = (s(X) - s(X - t)) * G / t
    slope = (s(X + 1e-6) - s(X - 1e-6)) / 2e-6
    got = pulled(quantizer, X, G)
    np.testing.assert_allclose(got[exists], crossing[exists], rtol=1e-9)
    np.testing.assert_allclose(got[~exists], (slope * G)[~exists], atol=1e-6)


@pytest.mark.parametrize("levels", [BINARY, UNEVEN, POSIT], ids=lambda f: f.name)
@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("rho", "alpha"), [(4.0, 0.1), (100.0, 0.05)])
@pytest.mark.thinned(4)
def test_centred_adaste_is_the_difference_across_the_nearest_boundary(
    levels, floor, rho, alpha
):
    quantizer = quantized.adaste(levels, rho, alpha=alpha, floor=floor, centred=True)
    values, s = levels.levels(), lambda x: np.asarray(weights_of(quantizer, x))
    middle, half = (values[1:] + values[:-1]) / 2, np.diff(values) / 2
    nearest = np.argmin(abs(X[:, None] - middle), 1)
    length = np.maximum(abs(X - middle[nearest]) * (1 + 1e-9), floor * half[nearest])
    expected = (s(X + length) - s(X - length)) / (2 * length) * G
    np.testing.assert_allclose(pulled(quantizer, X, G), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("centred", [False, True])
def test_adaste_where_there_is_no_nudge(centred):
    """On a boundary at 0, or at infinity, it is the limit, s'(x) g."""
    quantizer = quantized.adaste(BINARY, 0.25, floor=0.0, centred=centred)
    x = np.array([0.0, np.inf, -np.inf, np.inf, -np.inf])
    g = np.array([1.0, 1.0, 1.0, -1.0, -1.0])
    np.testing.assert_allclose(pulled(quantizer, x, g), [0.8, 0, 0, 0, 0], rtol=1e-12)


def test_centred_adaste_midway_between_two_boundaries():
    quantizer = quantized.adaste(TERNARY, 200.0, floor=0.0, centred=True)
    found = pulled(quantizer, np.array([0.0, 1e-3]), np.ones(2))
    np.testing.assert_allclose(found, [2.0, 1 / (2 * 0.499)], rtol=1e-9)


def test_centred_adaste_lets_noise_average_out():
    one_sided = quantized.adaste(BINARY, 200.0, floor=0.1)
    centred = quantized.adaste(BINARY, 200.0, floor=0.1, centred=True)
    expected = G / np.maximum(abs(X), 0.1)
    np.testing.assert_allclose(pulled(centred, X, G), expected, rtol=1e-12)
    # Gradients of either sign move one-sided latent weights to the boundary.
    rest = [pulled(q, X, G) + pulled(q, X, -G) for q in (one_sided, centred)]
    np.testing.assert_allclose(rest[1], 0, atol=1e-14)
    np.testing.assert_allclose(
        rest[0] * np.sign(X), 2 * abs(G) / np.maximum(abs(X), 0.1), rtol=1e-12
    )


def test_adaste_limits():
    schedule = lambda step: 0.01 * 1.05**step
    quantizer = quantized.adaste(BINARY, schedule, alpha=0.01)
    x = np.append(X, [1e-7, 0.0])
    sign = np.where(x < 0, -1, 1)
    # alpha rho reaches 1 after 189 steps: signs, exactly, at a finite rho.
    assert 0.01 * schedule(188) < 1 <= 0.01 * schedule(189)
    assert np.any(weights_of(quantizer, x, 188) != sign)
    np.testing.assert_array_equal(weights_of(quantizer, x, 189), sign)
    with jax.enable_x64(False):
        small = jnp.asarray(x, jnp.float32)
        np.testing.assert_array_equal(weights_of(quantizer, small, 190), sign)
    # rho -> inf at any alpha: the error falls as 1 / rho.
    errors = [
        np.max(abs(weights_of(quantized.adaste(BINARY, rho, alpha=1e-12), x) - sign))
        for rho in (1e3, 1e4, 1e5)
    ]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 10, rtol=0.02)


@pytest.mark.parametrize("levels", [TERNARY, UNEVEN], ids=lambda f: f.name)
def test_adaste_of_many_levels_is_exact_once_b_is_half_the_widest_gap(levels):
    half = np.max(np.diff(levels.levels())) / 2
    x = np.linspace(-3, 3, 997)
    exact = quantized.adaste(levels, half / 0.05, alpha=0.05)
    final = quantized.final(exact, *reversed(quantized.init(exact, {"kernel": x})))
    np.testing.assert_array_equal(weights_of(exact, x), final["kernel"])
    short = quantized.adaste(levels, 0.9 * half / 0.05, alpha=0.05)
    assert np.any(weights_of(short, x) != final["kernel"])


def test_adaste_has_no_slope_beyond_the_levels():
    """Not even where |x - 1| = alpha rho."""
    x = np.array([-1.1, -1.0, 1.0, 1.1, 1.2])
    got = pulled(quantized.adaste(BINARY, 1.0, alpha=0.1), x, -np.sign(x))
    np.testing.assert_array_equal(got, 0)


def test_adaste_floor_bounds_the_multiplier():
    x = np.array([1e-6, -1e-3, 0.4, 2.0])
    got = pulled(quantized.adaste(BINARY, 200.0, floor=0.5), x, np.sign(x))
    np.testing.assert_allclose(got * np.sign(x), [4.0, 4.0, 4.0, 1.0], rtol=1e-12)


def test_scale_leaves_the_rule_alone():
    """In units of the scale: s(x) and h are those of x / a."""
    plain, scaled = (quantized.adaste(BINARY, 4.0, scale=a) for a in (None, 0.25))
    np.testing.assert_allclose(
        weights_of(scaled, X / 4), weights_of(plain, X) / 4, rtol=1e-12
    )
    np.testing.assert_allclose(pulled(scaled, X / 4, G), pulled(plain, X, G), rtol=1e-9)


@pytest.mark.parametrize("levels", [BINARY, TERNARY, UNEVEN], ids=lambda f: f.name)
def test_tanh_projection_is_the_argmin_of_its_energy(levels):
    """Psi is the conjugate of Phi, Phi' = s: sup over x of w x - Phi(x)."""
    kappa, values = 2.0, levels.levels()
    middle, half = (values[1:] + values[:-1]) / 2, np.diff(values) / 2
    fine = np.linspace(-6, 6, 1201)
    shift = kappa * (fine[:, None] - middle)
    phi = (half * np.log(np.cosh(shift)) / kappa).sum(-1)
    phi += (values[0] + values[-1]) / 2 * fine
    grid = np.linspace(values[0], values[-1], 2001)[1:-1]
    psi = np.max(grid[:, None] * fine - phi, -1)
    x = np.linspace(-1.5, 1.5, 21)
    expected = grid[np.argmin(psi - x[:, None] * grid, -1)]
    got = weights_of(quantized.tanh_projection(levels, kappa), x)
    np.testing.assert_allclose(got, expected, atol=2e-2)
    if levels is BINARY:
        np.testing.assert_allclose(got, np.tanh(kappa * x), rtol=1e-14)
        entropy = ((1 + grid) * np.log1p(grid) + (1 - grid) * np.log1p(-grid)) / 2
        inside = abs(np.arctanh(grid)) < 6 * kappa
        np.testing.assert_allclose(psi[inside], entropy[inside] / kappa, atol=1e-3)
    if levels is TERNARY:
        steps = np.tanh(kappa * (x + 0.5)) + np.tanh(kappa * (x - 0.5))
        np.testing.assert_allclose(got, steps / 2, rtol=1e-13)


def test_tanh_projection_is_pulled_back_by_the_nudge():
    # The vector of the reference: s = tanh(1.7 x), x = 0.3, g = 0.7.
    errors = []
    for beta in (0.1, 0.05, 0.025):
        quantizer = quantized.tanh_projection(BINARY, 1.7, beta=beta)
        h = float(pulled(quantizer, 0.3, 0.7))
        s = lambda x: np.tanh(1.7 * x)
        np.testing.assert_allclose(h, (s(0.3) - s(0.3 - beta * 0.7)) / beta, rtol=1e-12)
        errors.append(h - 1.7 * (1 - s(0.3) ** 2) * 0.7)
    np.testing.assert_allclose(errors, [0.050042, 0.025515, 0.012865], atol=1e-6)
    limit = quantized.tanh_projection(BINARY, 1.7)
    expected = 1.7 * (1 - np.tanh(1.7 * X) ** 2) * G
    np.testing.assert_allclose(pulled(limit, X, G), expected, rtol=1e-12)


def test_tanh_projection_comes_to_posits_exactly_in_float32():
    """Sums of all steps would round small levels off."""
    with jax.enable_x64(False):
        x = jnp.array([0.01, 0.3, 1.0, 3.0, -700.0, 1e-7], jnp.float32)
        posit = number_formats.posit(8, 2)
        for make in (quantized.tanh_projection, quantized.mirror_descent_tanh):
            late = make(posit, 1e30)
            latent, state = quantized.init(late, {"kernel": x})
            final = quantized.final(late, state, latent)["kernel"]
            np.testing.assert_array_equal(weights_of(late, x), final)


def test_nudges_that_are_too_small_for_float32_have_their_limit():
    with jax.enable_x64(False):
        x = jnp.asarray(X, jnp.float32)
        quantizer = quantized.tanh_projection(BINARY, 3.0, beta=0.3)
        for size in (1.0, 1e-3, 1e-5, 1e-8):
            g = np.asarray(size * G, np.float32)
            s = lambda x: np.tanh(3 * np.asarray(x, np.float64))
            t = 0.3 * g.astype(np.float64)
            expected = (s(x) - s(np.asarray(x, np.float64) - t)) / 0.3
            got = pulled(quantizer, x, g)
            np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-3 * size)


def test_beta_and_lambda_are_in_units_of_the_scale():
    a, beta = 0.1, 0.5
    quantizer = quantized.tanh_projection(BINARY, 3.0, beta=beta, scale=a)
    s = lambda u: np.tanh(3 * u)
    u, t = X[:9] / a, beta * a * G[:9]
    np.testing.assert_allclose(
        pulled(quantizer, X[:9], G[:9]), (s(u) - s(u - t)) / (beta * a), atol=1e-12
    )
    moved = quantized.proxquant(BINARY, 0.25, scale=a).project(jnp.array(0.05), at())
    np.testing.assert_allclose(moved, 0.05 + 0.25 * a)


def test_nudges_of_monotone_maps_keep_the_sign_of_the_gradient():
    for quantizer in (
        quantized.adaste(UNEVEN, 2.0, alpha=0.1),
        quantized.tanh_projection(UNEVEN, 3.0, beta=0.7),
    ):
        assert np.all(pulled(quantizer, X, G) * G >= 0)


def test_softmax_projection_is_the_argmin_and_its_limit():
    x = np.random.default_rng(2).normal(size=(4, 3))
    g = np.random.default_rng(3).normal(size=4)
    kappa, values = 2.5, TERNARY.levels()
    quantizer = quantized.softmax_projection(TERNARY, kappa)
    # Over a grid of the simplex.
    ticks = np.linspace(1e-9, 1, 401)
    u = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    u = np.append(u, 1 - u.sum(-1, keepdims=True), -1)
    u = u[u[:, 2] > 0]
    energy = (u * np.log(u)).sum(-1, keepdims=True) / kappa - u @ x.T
    expected = u[np.argmin(energy, 0)] @ values
    np.testing.assert_allclose(weights_of(quantizer, x), expected, atol=5e-3)
    parts = np.asarray(jax.nn.softmax(kappa * x))
    slope = kappa * parts * (values - (parts @ values)[:, None])
    np.testing.assert_allclose(
        pulled(quantizer, x, g), slope * g[:, None], rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("name", ["tanh", "softmax"])
def test_projections_come_to_levels(name):
    make = getattr(quantized, f"{name}_projection")
    start = make(TERNARY, 1.0).start(jnp.asarray(X), None)
    final = quantized.ste(TERNARY).quantize(jnp.asarray(X), (), at())
    errors = [
        np.max(abs(weights_of(make(TERNARY, kappa), start) - final))
        for kappa in (10.0, 1e3, 1e6)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12


@pytest.mark.thorough
def test_mirror_descent_in_the_dual_is_that_in_the_primal():
    """kappa constant; the primal update is in closed form, a tanh addition."""
    rng = np.random.default_rng(4)
    eta, kappa = 0.05, 1.5
    quantizer = quantized.mirror_descent_tanh(BINARY, kappa)
    x = rng.normal(scale=0.3, size=50)
    w = np.tanh(kappa * x)
    for _ in range(20):
        g = rng.normal(size=50)
        x = x - eta * pulled(quantizer, x, g)
        ratio = (1 + w) / (1 - w) * np.exp(-2 * eta * kappa * g)
        w = (ratio - 1) / (ratio + 1)
        np.testing.assert_allclose(weights_of(quantizer, x), w, rtol=0, atol=1e-12)

    quantizer = quantized.mirror_descent_softmax(TERNARY, kappa)
    x = rng.normal(size=(50, 3))
    u = np.asarray(jax.nn.softmax(kappa * x))
    for _ in range(20):
        g = rng.normal(size=50)
        x = x - eta * pulled(quantizer, x, g)
        u = u * np.exp(-eta * kappa * g[:, None] * TERNARY.levels())
        u = u / u.sum(-1, keepdims=True)
        expected = u @ TERNARY.levels()
        np.testing.assert_allclose(weights_of(quantizer, x), expected, atol=1e-12)


def test_mirror_descent_is_the_contrast_in_the_dual():
    """[Psi'(s(x)) - Psi'(s(x - beta g))] / beta = g, for every beta."""
    kappa = 1.5
    quantizer = quantized.mirror_descent_tanh(BINARY, kappa)
    for beta in (0.01, 0.3, 1.0):
        free, nudged = (weights_of(quantizer, x) for x in (X / 2, (X - beta * G) / 2))
        contrast = (np.arctanh(free) - np.arctanh(nudged)) / kappa / (beta / 2)
        np.testing.assert_allclose(contrast, G, rtol=1e-8)
    np.testing.assert_array_equal(pulled(quantizer, X, G), G)


@pytest.mark.parametrize("levels", [BINARY, TERNARY, UNEVEN], ids=lambda f: f.name)
@pytest.mark.parametrize("strength", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("form", ["l1", "l2"])
@pytest.mark.thinned(3)
def test_proxquant_is_the_argmin_of_its_energy(levels, strength, form):
    values = levels.levels()

    def energy(w, x):
        away = distance(w, values)
        return (w - x) ** 2 / 2 + strength * (away if form == "l1" else away**2 / 2)

    x = X[:12]
    expected = grid_argmin(energy, x, -5, 5, 200_001)
    quantizer = quantized.proxquant(levels, lambda step: step * strength, form=form)
    got = jax.jit(lambda x: quantizer.project(x, at(1)))(jnp.asarray(x))
    np.testing.assert_allclose(got, expected, atol=5e-5)
    np.testing.assert_array_equal(quantizer.project(jnp.asarray(x), at(0)), x)
    np.testing.assert_array_equal(weights_of(quantizer, x), x)  # real in training
    np.testing.assert_array_equal(pulled(quantizer, x, G[:12]), G[:12])


def test_proxquant_binary_is_the_published_prox():
    lam, x = 0.3, np.append(X, 1e-9)
    size = abs(x)
    inner = 1 + np.sign(size - 1) * np.maximum(abs(size - 1) - lam, 0)
    got = quantized.proxquant(BINARY, lam).project(jnp.asarray(x), at())
    np.testing.assert_allclose(got, np.sign(x) * inner, rtol=1e-14)


BAD = [
    (lambda: quantized.adaste(BINARY, 0.0), "rho must be positive, got 0"),
    (lambda: quantized.adaste(BINARY, lambda step: -1.0), "rho must be positive"),
    (lambda: quantized.adaste(BINARY, alpha=-0.1), "alpha must be positive"),
    (lambda: quantized.adaste(BINARY, floor=2.0), "floor must lie in"),
    (
        lambda: quantized.adaste(BINARY, as_released=True, centred=True),
        "leave centred out",
    ),
    (
        lambda: quantized.adaste(number_formats.posit(24, 1)),
        "at most 16 bits, got posit<24,1>",
    ),
    (
        lambda: quantized.adaste(number_formats.symmetric(4, np.ones((1, 3)))),
        "two levels or more in one row|has scales of its own",
    ),
    (lambda: quantized.tanh_projection(BINARY, -1.0), "kappa must be positive"),
    (lambda: quantized.tanh_projection(BINARY, beta=-1.0), "must not be negative"),
    (lambda: quantized.softmax_projection(number_formats.symmetric(9)), "at most 8"),
    (lambda: quantized.mirror_descent_tanh(BINARY, 0.0), "kappa must be positive"),
    (lambda: quantized.proxquant(BINARY, -1.0), "must not be negative"),
    (lambda: quantized.proxquant(BINARY, 0.1, form="l3"), 'must be "l1" or "l2"'),
    (lambda: quantized.ste(number_formats.codebook([])), "at least two levels"),
    (lambda: quantized.ste(number_formats.posit(4, 3)), "exponent_bits must lie in"),
    (lambda: quantized.ste(number_formats.symmetric(4, 0.0)), "scale must be positive"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
