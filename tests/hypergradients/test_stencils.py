"""Difference quotients: exact on polynomials, of the order that they say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.hypergradients import stencils
from bilevel.hypergradients.stencils import (
    Stencil,
    centred,
    contour,
    of_order,
    one_sided,
    random_sign,
    richardson,
)

KEY = jax.random.key(0)

ALL = {
    "one_sided": one_sided,
    "one_sided, negative": lambda beta: one_sided(-beta),
    "centred": centred,
    "random_sign": random_sign,
    "richardson, one_sided": lambda beta: richardson(one_sided(beta)),
    "richardson, centred": lambda beta: richardson(centred(beta)),
    "richardson, twice": lambda beta: richardson(richardson(one_sided(beta))),
    "of_order, 2": lambda beta: of_order(beta, 2),
    "of_order, 4": lambda beta: of_order(beta, 4),
    "of_order, 6": lambda beta: of_order(beta, 6),
    "of_order, 12": lambda beta: of_order(beta, 12),
    "contour, 2": lambda beta: contour(beta, 2),
    "contour, 3": lambda beta: contour(beta, 3),
    "contour, 4": contour,
    "contour, 7": lambda beta: contour(beta, 7),
}
rows = pytest.mark.parametrize("make", ALL.values(), ids=list(ALL))


def quotient(stencil: Stencil, function: Any, *, lower: bool = False) -> float:
    betas = stencils.nodes(stencil, key=KEY)
    weights = stencils.weights(stencil, betas, lower=lower)
    return float(jnp.sum(jnp.real(weights * (function(betas) - function(0.0)))))


@rows
def test_shares_sum_to_one(make: Any):
    stencil = make(0.3)
    np.testing.assert_allclose(sum(stencil.shares), 1, rtol=1e-14)
    if stencil.lower is not None:
        np.testing.assert_allclose(sum(stencil.lower), 1, rtol=1e-14)


@rows
def test_exact_on_polynomials_up_to_the_order_and_no_further(make: Any):
    stencil = make(0.3)
    for degree in range(1, stencil.order + 1):
        got = quotient(stencil, lambda b, d=degree: b**d + 2.0)
        np.testing.assert_allclose(got, degree == 1, atol=1e-12)
    beyond = quotient(stencil, lambda b: b ** (stencil.order + 1))
    assert abs(beyond) > 1e-3 * 0.3**stencil.order


@rows
def test_error_falls_with_the_order(make: Any):
    """Of exp(b): the ratio of the errors of beta and beta / 2."""
    errors = [abs(quotient(make(beta), jnp.exp) - 1) for beta in (0.8, 0.4)]
    order = make(0.8).order
    if order < 10:  # else it is rounding
        np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.6)


@rows
def test_bias_is_estimated_from_above(make: Any):
    stencil = make(0.2)
    if stencil.lower is None:
        return
    fine = quotient(stencil, jnp.exp)
    coarse = quotient(stencil, jnp.exp, lower=True)
    estimate = abs(fine - coarse) ** stencil.power
    error = abs(fine - 1)
    assert error <= estimate
    # Of a power of one it is the error of the less accurate estimate.
    assert stencil.power == 1 or estimate <= 3 * error


@rows
def test_free_state_is_needed_where_weights_do_not_cancel(make: Any):
    stencil = make(0.3)
    weights = stencils.weights(stencil, stencils.nodes(stencil, key=KEY))
    total = abs(float(jnp.sum(jnp.real(weights))))
    assert stencils.needs_free(stencil) == (total > 1e-9)


def test_a_contour_of_two_points_is_centred():
    for make in (centred, lambda beta: contour(beta, 2)):
        np.testing.assert_allclose(quotient(make(0.1), jnp.sin), np.sin(0.1) / 0.1)


def test_a_random_sign_is_fair_and_centred_in_the_mean():
    stencil, cubic = random_sign(0.5), lambda b: b + b**2 + b**3
    keys = jax.random.split(KEY, 1000)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        betas = stencils.nodes(stencil, key=key)
        return betas[0], jnp.sum(stencils.weights(stencil, betas) * cubic(betas))

    betas, values = jax.vmap(one)(keys)
    assert set(np.asarray(betas).tolist()) == {0.5, -0.5}
    assert abs(float(jnp.mean(betas > 0)) - 0.5) < 4 * 0.5 / np.sqrt(1000)
    both = [float(jnp.mean(values[betas == b])) for b in (0.5, -0.5)]
    np.testing.assert_allclose(np.mean(both), quotient(centred(0.5), cubic))
    with pytest.raises(ValueError, match="a random sign needs a key"):
        stencils.nodes(stencil)


def test_dtypes_and_traced_betas():
    real = stencils.nodes(centred(0.5), jnp.float32)
    assert real.dtype == jnp.float32
    assert stencils.weights(centred(0.5), real).dtype == jnp.float32
    wide = stencils.nodes(contour(0.5), jnp.float32)
    assert wide.dtype == jnp.complex64
    assert stencils.weights(contour(0.5), wide).dtype == jnp.complex64
    traced = jax.jit(lambda b: stencils.nodes(centred(b)))(0.25)
    assert traced.tolist() == [0.25, -0.25]


@pytest.mark.parametrize("beta", [0.0, jnp.nan, jnp.inf, -0.1])
@pytest.mark.parametrize("make", [centred, random_sign, contour, one_sided])
def test_betas_out_of_range(make: Any, beta: float):
    if make is one_sided and beta == -0.1:
        assert one_sided(beta).beta == -0.1
        return
    with pytest.raises(ValueError, match="the strength of the nudge, must be"):
        make(beta)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of_order(0.1, 3), "order must be even"),
        (lambda: of_order(0.1, 14), "at most 12"),
        (lambda: contour(0.1, 1), "num_points must be an integer >= 2"),
        (lambda: richardson(contour(0.1)), "a stencil of real points"),
        (lambda: richardson(random_sign(0.1)), "without a random sign"),
    ],
)
def test_settings_out_of_range(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
