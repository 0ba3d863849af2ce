"""Fenchel pairs: Young's equality, and derivatives by automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.energy import activations

PAIRS = [n for n in activations.NAMES if activations.by_name(n).potential is not None]
# Of one unit; test_coupled_units.py has the others.
ALONE = [name for name in PAIRS if name != "softmax"]
POINTS = jnp.array([-3.0, -1.2, -0.3, 0.2, 0.7, 0.95, 2.5])


@pytest.mark.parametrize("name", ALONE)
def test_young(name):
    """R(s) + R*(a) >= s a, with equality at s = f(a)."""
    one = activations.by_name(name)
    settled = one.apply(POINTS)
    sum_at = lambda s, a: one.potential(s) + one.conjugate(a) - s * a
    np.testing.assert_allclose(sum_at(settled, POINTS), 0, atol=1e-14)
    other = sum_at(settled[:, None], POINTS[None, :])
    assert jnp.all(other >= -1e-14)


@pytest.mark.parametrize("name", ALONE)
def test_the_activation_is_the_derivative_of_the_conjugate(name):
    one = activations.by_name(name)
    slopes = jax.vmap(jax.grad(one.conjugate))(POINTS)
    np.testing.assert_allclose(slopes, one.apply(POINTS), atol=1e-14)


@pytest.mark.parametrize("name", ["identity", "leaky_relu", "sigmoid", "tanh"])
def test_the_derivative_of_the_potential_is_the_inverse(name):
    one = activations.by_name(name)
    back = jax.vmap(jax.grad(one.potential))(one.apply(POINTS))
    np.testing.assert_allclose(back, POINTS, rtol=1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_finite_at_the_ends_of_the_range(name):
    one = activations.by_name(name)
    ends = one.apply(jnp.array([-1e4, 0.0, 1e4]))
    assert jnp.all(jnp.isfinite(one.potential(ends)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", activations.NAMES)
def test_dtype_stays(name, dtype):
    one = activations.by_name(name)
    a = POINTS.astype(dtype)
    for function in (one.apply, one.potential, one.conjugate):
        assert function is None or function(a).dtype == dtype


def test_own_activation_passes_and_others_are_refused():
    own = activations.Activation("own", jnp.sin)
    assert activations.by_name(own) is own
    with pytest.raises(
        ValueError, match="no activation 'rely'; there are identity, re"
    ):
        activations.by_name("rely")
