"""The energies whose argmins quantisers are: to evaluate, to plot, to minimise.

A latent weight x and a weight w have the energy

    G(w, x) = R(w) - w x + x^2 / 2      in proximal form
    G(w, x) = R(w) - w x                in mirror form

so that a tilt of G is a shift of x, and the weight is w(x) = argmin over w of G(w, x).
R has its minima at the levels, or the argmin comes to levels as its strength grows.
Quantisers return the minimiser, in closed form.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.iteration import iterate
from bilevel.quantized.levels import Levels, along_last
from bilevel.trees import Tree


class Energy(NamedTuple):
    """The energy of weights, and its argmin.

    Attributes:
        finite: `(w, x, strength) -> energies`, of each weight where it may be; on the
            simplex `[..., n] -> [...]`.
        minimiser: `(x, strength) -> w`, like x.
        is_allowed: `w -> bools`, like the energies: elsewhere the energy is infinite.
            (Apart, so that the derivative of `finite` does not jump to 0 where rounding
            puts w beyond the end.)
    """

    finite: Callable[[jax.Array, jax.Array, Tree], jax.Array]
    minimiser: Callable[[jax.Array, Tree], jax.Array]
    is_allowed: Callable[[jax.Array], jax.Array]

    def value(self, w: jax.Array, x: jax.Array, strength: Tree) -> jax.Array:
        """G(w, x) of each weight, infinite where none may be."""
        return jnp.where(self.is_allowed(w), self.finite(w, x, strength), jnp.inf)


def _between(levels: Levels) -> Callable[[jax.Array], jax.Array]:
    least, most = float(levels.values[0]), float(levels.values[-1])
    return lambda w: (least <= w) & (w <= most)


def well(levels: Levels, alpha: float) -> Energy:
    """(w - x)^2 / 2 + rho / 2 (dist(w, L) + alpha)^2 for w within the range: AdaSTE.

    Args:
        levels: L.
        alpha: by how much the wells' bottoms overshoot the levels.

    Returns:
        An `Energy` of strength rho.

    Source: Le, Hoier, Lin, Zach 2022, arXiv:2112.02880, equation 11; level sets other
    than {-1, 1} are an extension of ours.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized.levels import levels_of
        >>> energy = well(levels_of(number_formats.binary()), alpha=0.1)
        >>> x, rho = jnp.array(0.7), jnp.array(2.0)
        >>> round(float(energy.minimiser(x, rho)), 4)
        0.9667
    """
    least, most = float(levels.values[0]), float(levels.values[-1])

    def finite(w: jax.Array, x: jax.Array, rho: Tree) -> jax.Array:
        apart = jnp.abs(w - levels.nearest(w))
        return (w - x) ** 2 / 2 + rho / 2 * (apart + alpha) ** 2

    def minimiser(x: jax.Array, rho: Tree) -> jax.Array:
        nearest = levels.nearest(x)
        is_inside = (least < x) & (x < most)
        rest = jnp.where(is_inside, x - nearest, 0)
        moved = jnp.maximum(jnp.abs(rest) - alpha * rho, 0) / (1 + rho)
        return nearest + jnp.sign(rest) * moved

    return Energy(finite, minimiser, _between(levels))


def distance(levels: Levels, form: Literal["l1", "l2"]) -> Energy:
    """(w - x)^2 / 2 + lambda R(w), R = dist(w, L) or dist(w, L)^2 / 2: ProxQuant.

    Args:
        levels: L.
        form: the first or the second R.

    Returns:
        An `Energy` of strength lambda.

    Source: Bai, Wang, Liberty 2019, arXiv:1810.00861, equations 8 and 11.
    """

    def finite(w: jax.Array, x: jax.Array, strength: Tree) -> jax.Array:
        apart = jnp.abs(w - levels.nearest(w))
        return (w - x) ** 2 / 2 + strength * (apart if form == "l1" else apart**2 / 2)

    def minimiser(x: jax.Array, strength: Tree) -> jax.Array:
        nearest = levels.nearest(x)
        if form == "l2":
            return (x + strength * nearest) / (1 + strength)
        rest = x - nearest
        moved = x - jnp.sign(rest) * strength
        return jnp.where(jnp.abs(rest) <= strength, nearest, moved)

    return Energy(finite, minimiser, lambda w: ~jnp.isnan(w))


def entropy(levels: Levels) -> Energy:
    """Psi(w) / kappa - w x for w between the ends: the staircase of tanh.

    For {-1, 1}, Psi is the negative entropy ((1 + w) log(1 + w) + (1 - w) log(1 - w)) /
    2. For other levels it is the conjugate of what the staircase

        s(x) = (least + greatest) / 2 + sum_j half_gap_j tanh(kappa (x - boundary_j))

    is the derivative of, by bisection: Psi'(w) / kappa is the x with s(x) = w.

    Args:
        levels: at least two.

    Returns:
        An `Energy` of strength kappa.

    Source: Ajanthan et al. 2021, arXiv:1910.08237 (mirror map of tanh).
    """
    half_gaps = np.diff(levels.values) / 2
    middle = float(levels.values[0] + levels.values[-1]) / 2

    def minimiser(x: jax.Array, kappa: Tree) -> jax.Array:
        halves = along_last(half_gaps, x)
        past = x[..., None] - along_last(levels.boundaries, x)
        # What is missing to the nearest level: a sum of all steps loses small ones.
        missing = halves * (jnp.tanh(kappa * past) - jnp.where(past < 0, -1, 1))
        return levels.nearest(x) + jnp.sum(missing, -1)

    def potential(x: jax.Array, kappa: Tree) -> jax.Array:
        """The integral of the staircase: log cosh, so written that none overflows."""
        past = jnp.abs(kappa * (x[..., None] - along_last(levels.boundaries, x)))
        log_cosh = past + jnp.log1p(jnp.exp(-2 * past)) - math.log(2)
        return middle * x + jnp.sum(along_last(half_gaps, x) * log_cosh, -1) / kappa

    def inverse(w: jax.Array, kappa: Tree) -> jax.Array:
        """The x with s(x) = w, between bounds beyond which s is the end in float64."""
        low = jnp.full_like(w, levels.boundaries[0]) - 20 / kappa
        high = jnp.full_like(w, levels.boundaries[-1]) + 20 / kappa

        def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            half = (low + high) / 2
            is_below = minimiser(half, kappa) < w
            return jnp.where(is_below, half, low), jnp.where(is_below, high, half)

        low, high = iterate(halve, (low, high), num_steps=60)
        return (low + high) / 2

    @jax.custom_jvp
    def psi(w: jax.Array, kappa: Tree) -> jax.Array:
        x = inverse(w, kappa)
        return w * x - potential(x, kappa)

    @psi.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        # By Legendre's transform the derivative in w is x; that in kappa is not used.
        w, kappa = primals
        return psi(w, kappa), inverse(w, kappa) * tangents[0]

    def finite(w: jax.Array, x: jax.Array, kappa: Tree) -> jax.Array:
        return psi(w, kappa) - w * x

    return Energy(finite, minimiser, _between(levels))


def simplex_entropy() -> Energy:
    """<u, log u> / kappa - <u, x> for u on the simplex: softmax(kappa x).

    Returns:
        An `Energy` of strength kappa, of vectors along the last axis.

    Source: Ajanthan et al. 2019, arXiv:1812.04353, equations 8 to 10.

    Example:
        >>> energy, kappa = simplex_entropy(), jnp.array(2.0)
        >>> x = jnp.array([1.0, 0.0])
        >>> u = energy.minimiser(x, kappa)
        >>> bool(energy.value(u, x, kappa) < energy.value(u[::-1], x, kappa))
        True
    """

    def finite(u: jax.Array, x: jax.Array, kappa: Tree) -> jax.Array:
        bits = jnp.where(u > 0, u * jnp.log(jnp.where(u > 0, u, 1)), 0)
        return jnp.sum(bits / kappa - u * x, -1)

    def is_allowed(u: jax.Array) -> jax.Array:
        slack = 8 * jnp.finfo(u.dtype).eps * u.shape[-1]
        return jnp.all(u >= 0, -1) & (jnp.abs(jnp.sum(u, -1) - 1) <= slack)

    def minimiser(x: jax.Array, kappa: Tree) -> jax.Array:
        return jax.nn.softmax(kappa * x)

    return Energy(finite, minimiser, is_allowed)
