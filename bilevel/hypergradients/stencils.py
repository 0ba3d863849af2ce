"""Stencils: at which nudges a derivative is read off, and with which weights.

With f(b) what is observed under a nudge of strength b, a stencil is a mean of divided
differences,

    df/db(0)  =  sum over j of c_j [f(b_j) - f(0)] / b_j  +  O(beta^p),    sum c_j = 1

with the nodes b_j = beta p_j on the points p_j, the shares c_j, and the order p.  The
core's nudged rule, equilibrium propagation in all its forms and the nudges of
quantisers take one; they differ in what is nudged and what is observed.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import checks
from bilevel.known import known

__all__ = [
    "Stencil",
    "centred",
    "contour",
    "needs_free",
    "nodes",
    "of_order",
    "one_sided",
    "random_sign",
    "richardson",
    "weights",
]


class Stencil(NamedTuple):
    """Nodes and weights of a difference quotient.

    Attributes:
        name: of the stencil.
        beta: the size of the nudges, a number, or a `[]` array that may be traced.
        points: p_j, without 0; complex ones stand for themselves and their conjugates.
        shares: c_j, which sum to one.
        order: p; the error is O(beta^p).
        lower: shares of a less accurate estimate on the same points, from which the
            error is estimated; None where there is none.
        power: the relative error is about the relative difference of both estimates to
            this power, or less.
        has_random_sign: all nodes change sign together, by a fair coin, in every use.
    """

    name: str
    beta: float | jax.Array
    points: tuple[complex, ...]
    shares: tuple[float, ...]
    order: int
    lower: tuple[float, ...] | None = None
    power: float = 1.0
    has_random_sign: bool = False


def one_sided(beta: float | jax.Array) -> Stencil:
    """[f(beta) - f(0)] / beta, with an error of O(beta).

    Args:
        beta: not 0; negative for a nudge away from the target.

    Raises:
        ValueError: beta is 0 or not finite.

    Example:
        >>> one_sided(0.1).order
        1
    """
    return Stencil("one_sided", _nudge("one_sided", beta), (1.0,), (1.0,), 1)


def centred(beta: float | jax.Array) -> Stencil:
    """[f(beta) - f(-beta)] / (2 beta), with an error of O(beta^2).

    Its error is estimated as the square of the one-sided one's.

    Args:
        beta: positive.

    Raises:
        ValueError: beta is not positive and finite.

    Example:
        >>> weights(centred(0.5)).tolist()
        [1.0, -1.0]
    """
    beta = _nudge("centred", beta, positive=True)
    return Stencil("centred", beta, (1.0, -1.0), (0.5, 0.5), 2, (1.0, 0.0), 2.0)


def random_sign(beta: float | jax.Array) -> Stencil:
    """`one_sided` with beta or -beta by chance: `centred` in the mean, for one node.

    Args:
        beta: positive.

    Raises:
        ValueError: beta is not positive and finite.
    """
    stencil = one_sided(_nudge("random_sign", beta, positive=True))
    return stencil._replace(name="random_sign", has_random_sign=True)


def richardson(base: Stencil) -> Stencil:
    """Extrapolates `base` from beta and beta / 2 to 0: its leading error drops out.

    The order rises by one, or by two where the points of `base` are symmetric.  The
    error is that of the half nudge, or less.

    Args:
        base: `one_sided` or `centred`, or any of real points.

    Raises:
        ValueError: complex points, or a random sign.

    Source: Richardson 1911.

    Example:
        >>> richardson(centred(0.1)).order
        4
    """
    if any(isinstance(p, complex) for p in base.points) or base.has_random_sign:
        raise ValueError(
            "richardson: expected a stencil of real points without a random sign, got "
            f"{base.name}."
        )
    factor = 2.0**base.order
    coarse = tuple(-c / (factor - 1) for c in base.shares)
    fine = tuple(c * factor / (factor - 1) for c in base.shares)
    symmetric = set(base.points) == {-p for p in base.points}
    none = (0.0,) * len(base.points)
    return Stencil(
        name=f"richardson({base.name})",
        beta=base.beta,
        points=(*base.points, *(p / 2 for p in base.points)),
        shares=(*coarse, *fine),
        order=base.order + (2 if symmetric else 1),
        lower=(*none, *base.shares),
    )


def of_order(beta: float | jax.Array, order: int) -> Stencil:
    """The difference quotient of an even order on `order` nodes, +-1, +-2, ... beta.

    `centred` is the one of order two.  Used by F2SA-p.

    Args:
        beta: positive.
        order: p, even, from 2 to 12.

    Raises:
        ValueError: beta is not positive and finite, or another order.

    Source: Fornberg 1988, "Generation of finite difference formulas on arbitrarily
    spaced grids"; Chen et al. 2026 (F2SA-p), arXiv:2509.02937.

    Example:
        >>> [round(c, 4) for c in of_order(1.0, 4).shares]
        [0.6667, -0.1667, 0.6667, -0.1667]
    """
    beta = _nudge("of_order", beta, positive=True)
    order = checks.count("of_order: order", order, 2)
    if order % 2 or order > 12:
        raise ValueError(f"of_order: order must be even and at most 12, got {order}.")
    half = order // 2
    if half == 1:
        return centred(beta)
    # In closed form: exact in integers, while a linear system of powers is not.
    share = [
        (-1) ** (k + 1)
        * math.factorial(half) ** 2
        / (math.factorial(half - k) * math.factorial(half + k))
        for k in range(1, half + 1)
    ]
    lower = [
        (-1) ** (k + 1)
        * math.factorial(half - 1) ** 2
        / (math.factorial(half - 1 - k) * math.factorial(half - 1 + k))
        if k < half
        else 0.0
        for k in range(1, half + 1)
    ]
    places = [float(k) for k in range(1, half + 1)]
    return Stencil(
        name=f"of_order({order})",
        beta=beta,
        points=(*places, *(-p for p in places)),
        shares=(*share, *share),
        order=order,
        lower=(*lower, *lower),
    )


def contour(beta: float | jax.Array, num_points: int = 4) -> Stencil:
    """Cauchy's formula on a circle of N complex nudges: an error of O(beta^N).

    For an f that is analytic within the circle and real on the real axis.  Nudges that
    are conjugate give conjugate values, so that N // 2 + 1 nodes stand for N.

    Args:
        beta: the radius, positive.
        num_points: N >= 2; the nudge -beta is a point where N is even.

    Raises:
        ValueError: beta is not positive and finite, or N below 2.

    Source: Laborieux and Zenke 2022, arXiv:2209.00530, equation 8.

    Example:
        >>> contour(0.4, 4).points
        ((1+0j), 1j, (-1+0j))
    """
    beta = _nudge("contour", beta, positive=True)
    num_points = checks.count("contour: num_points", num_points, 2)
    half = np.arange(num_points // 2 + 1)
    circle = np.exp(2j * np.pi * half / num_points)
    is_real = (half == 0) | (2 * half == num_points)
    exact = np.where(is_real, np.round(circle), circle)  # values there are real
    exact = np.where(4 * half == num_points, 1j, exact)
    # The others stand for themselves and their conjugates.
    share = np.where(is_real, 1, 2) / num_points
    return Stencil(
        name=f"contour({num_points})",
        beta=beta,
        points=tuple(complex(p) for p in exact),
        shares=tuple(float(c) for c in share),
        order=num_points,
    )


def nodes(
    stencil: Stencil, dtype: jnp.dtype | None = None, key: jax.Array | None = None
) -> jax.Array:
    """b_j, `[P]`.

    Args:
        stencil: any.
        dtype: of real nodes; complex ones get the complex dtype of its width.
        key: for a random sign.

    Raises:
        ValueError: a random sign without a key.
    """
    points = np.asarray(stencil.points)
    if np.iscomplexobj(points):
        wide = jnp.result_type(dtype or jnp.zeros(()).dtype, jnp.complex64)
        return jnp.asarray(stencil.beta * points, wide)
    signed = jnp.asarray(points, dtype)
    if stencil.has_random_sign:
        if key is None:
            raise ValueError(
                f"{stencil.name}: a random sign needs a key; call "
                "rule(params, inputs, targets, key)."
            )
        signed = signed * jax.random.rademacher(key, (1,), signed.dtype)
    return stencil.beta * signed


def weights(
    stencil: Stencil, at: jax.Array | None = None, *, lower: bool = False
) -> jax.Array:
    """w_j, `[P]`: the derivative is the sum of w_j [f(b_j) - f(0)].

    Args:
        stencil: any.
        at: b_j, from `nodes`; None for those of a sign that is not random.
        lower: those of the less accurate estimate.
    """
    betas = nodes(stencil) if at is None else at
    shares = stencil.lower if lower else stencil.shares
    if jnp.iscomplexobj(betas):  # rounded once
        quotients = np.asarray(shares) / np.asarray(stencil.points)
        return jnp.asarray(quotients / stencil.beta, betas.dtype)
    return jnp.asarray(shares, betas.dtype) / betas


def needs_free(stencil: Stencil) -> bool:
    """Whether f(0) has a weight of its own: those of the nodes do not sum to zero."""
    quotients = np.asarray(stencil.shares) / np.asarray(stencil.points)
    return bool(abs(np.sum(np.real(quotients))) > 1e-9)


def _nudge(
    name: str, beta: float | jax.Array, *, positive: bool = False
) -> float | jax.Array:
    """`beta`; raises `ValueError` for one that is known and out of range."""
    given = known(beta)
    if given is None:
        return beta
    good = np.all(given > 0) if positive else np.all(given != 0)
    if not (good and np.all(np.isfinite(given))):
        what = "positive and finite" if positive else "finite and not 0"
        hint = "" if positive else " (0.01, say)"
        other = (
            "; for a nudge of negative sign take stencils.one_sided(beta)"
            if positive
            else ""
        )
        raise ValueError(
            f"{name}: beta, the strength of the nudge, must be {what}{hint}, got "
            f"{beta}{other}."
        )
    return beta
