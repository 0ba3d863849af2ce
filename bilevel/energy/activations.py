"""Activations as Fenchel pairs: f = (R*)' for a convex potential R.

A unit with input a settles at f(a) = argmin over s of R(s) - s a, so that a layer is an
argmin with a closed form, and every rule for argmins applies to it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy


class Activation(NamedTuple):
    """An activation, and the potentials it comes from.

    It acts on each unit by itself, or couples the units of an example, as softmax does.
    Then potential and conjugate are what the sums of the values over an example are,
    and f must be the derivative of the conjugate, so that its Jacobian is symmetric:
    energies and dual propagation refuse others where they are first traced.

    Attributes:
        name: what `by_name` finds it under.
        apply: f(a), non-decreasing where there is a potential (monotone, if units are
            coupled).
        potential: R(s) with R'(f(a)) = a, for s in the range of f; it is not checked
            that s lies there. `[B, ...]`, whose sum over an example counts. None: f is
            not monotone.
        conjugate: R*(a) = max over s of a s - R(s), with R*' = f; shape and None as
            above.
        curvature: c, where R(s) is c s^2 / 2 on an interval (c |s|^2 / 2 on a convex
            set, if units are coupled); otherwise None. Then a quadratic term
            h s^2 / 2 is solved exactly with R: f(c a / (c + h)).
        holomorphic: f is analytic, and `apply` takes complex numbers.
    """

    name: str
    apply: Callable[[jax.Array], jax.Array]
    potential: Callable[[jax.Array], jax.Array] | None = None
    conjugate: Callable[[jax.Array], jax.Array] | None = None
    curvature: float | None = None
    holomorphic: bool = False


def _half_square(s: jax.Array) -> jax.Array:
    return s**2 / 2


def _hard_sigmoid(a: jax.Array) -> jax.Array:
    return jnp.clip(a, 0, 1)


def _hard_sigmoid_conjugate(a: jax.Array) -> jax.Array:
    s = _hard_sigmoid(a)
    return a * s - s**2 / 2


def _half_hard_sigmoid(a: jax.Array) -> jax.Array:
    return jnp.clip(a / 2, 0, 1)


def _half_hard_sigmoid_conjugate(a: jax.Array) -> jax.Array:
    s = _half_hard_sigmoid(a)
    return a * s - s**2


def _leaky_relu_potential(s: jax.Array) -> jax.Array:
    return jnp.where(s >= 0, s**2, s**2 / _LEAK) / 2


def _leaky_relu_conjugate(a: jax.Array) -> jax.Array:
    return jnp.where(a >= 0, a**2, _LEAK * a**2) / 2


def _tanh_potential(s: jax.Array) -> jax.Array:
    return (xlogy(1 + s, 1 + s) + xlogy(1 - s, 1 - s)) / 2


def _tanh_conjugate(a: jax.Array) -> jax.Array:
    return jnp.logaddexp(a, -a) - jnp.log(2.0).astype(a.dtype)  # log cosh a


def _sigmoid_potential(s: jax.Array) -> jax.Array:
    return xlogy(s, s) + xlogy(1 - s, 1 - s)


_LEAK = 0.01  # as jax.nn.leaky_relu
_ALL = (
    Activation(
        "identity", lambda a: a, _half_square, _half_square, 1.0, holomorphic=True
    ),
    Activation(
        "relu", jax.nn.relu, _half_square, lambda a: _half_square(jax.nn.relu(a)), 1.0
    ),
    Activation(
        "leaky_relu", jax.nn.leaky_relu, _leaky_relu_potential, _leaky_relu_conjugate
    ),
    Activation(
        "hard_sigmoid", _hard_sigmoid, _half_square, _hard_sigmoid_conjugate, 1.0
    ),
    Activation(
        "half_hard_sigmoid",
        _half_hard_sigmoid,
        lambda s: s**2,
        _half_hard_sigmoid_conjugate,
        2.0,
    ),
    Activation(
        "sigmoid",
        jax.nn.sigmoid,
        _sigmoid_potential,
        jax.nn.softplus,
        holomorphic=True,
    ),
    Activation(
        "shifted_sigmoid",
        lambda a: jax.nn.sigmoid(4 * a - 2),
        lambda s: (_sigmoid_potential(s) + 2 * s) / 4,
        lambda a: jax.nn.softplus(4 * a - 2) / 4,
        holomorphic=True,
    ),
    Activation("tanh", jnp.tanh, _tanh_potential, _tanh_conjugate, holomorphic=True),
    Activation(
        "softmax",
        lambda a: jax.nn.softmax(a, axis=-1),
        lambda s: xlogy(s, s),
        lambda a: jax.nn.logsumexp(a, axis=-1),
    ),
    Activation("gelu", jax.nn.gelu),
    Activation("silu", jax.nn.silu),
)
NAMES = tuple(one.name for one in _ALL)


def by_name(which: str | Activation) -> Activation:
    """Returns an activation by name; one of your own passes through.

    Args:
        which: 'identity', 'relu', 'leaky_relu', 'hard_sigmoid' (clip(a, 0, 1)),
            'half_hard_sigmoid' (clip(a / 2, 0, 1)), 'sigmoid', 'shifted_sigmoid'
            (sigmoid(4 a - 2)), 'tanh', 'softmax' (over the last axis), 'gelu' or
            'silu' (no potential), or an `Activation`.

    Raises:
        ValueError: there is none of this name.

    Example:
        >>> relu = by_name("relu")
        >>> float(relu.apply(jnp.float32(-1.0)))
        0.0
    """
    if isinstance(which, Activation):
        return which
    found = [one for one in _ALL if one.name == which]
    if not found:
        raise ValueError(
            f"there is no activation {which!r}; there are {', '.join(NAMES)}, or pass "
            "an Activation."
        )
    return found[0]
