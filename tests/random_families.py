"""Random bilevel problems of nine families, each with an exact answer.

All families but one share one form of inner and outer objective, so that they share the
compiled programs, too; what differs are the numbers.  Sizes of small and large numbers
are powers of the rounding unit of the dtype: a problem that is hard in float64 has a
counterpart in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import exact_answers
import jax.numpy as jnp
import numpy as np
from exact_answers import Truth, rational

NUM_OUTER = 3


class Data(NamedTuple):
    """The numbers of one problem, n inner and m outer variables.

    With y = R w and r = y - (L x + l), the inner objective is

        G = a + r' (H + diag(D' x)) r / 2 + sum k r^4 / 4
              + sum p (sqrt(1 + r^2) - 1) - y' (c + B x)

    and with z = S w and q = z - t the outer one

        F = sum (m q^2 / 2 + h max(q, 0) + s max(q, 0)^2 + b clip(q, -1, 1)^2 + e z)
              + d' x
    """

    hessian: Any  # H [n, n]
    slopes: Any  # D [m, n]
    linear: Any  # c [n]
    mixed: Any  # B [n, m]
    offset: Any  # l [n]
    moves: Any  # L [n, m]
    quartic: Any  # k [n]
    pseudo_huber: Any  # p [n]
    rotation: Any  # R [n, n]
    constant: Any  # a []
    readout: Any  # S [n, n]
    target: Any  # t [n]
    square: Any  # m [n]
    hinge: Any  # h [n]
    squared_hinge: Any  # s [n]
    clipped: Any  # b [n]
    slope: Any  # e [n]
    direct: Any  # d [m]


class Draw(NamedTuple):
    """One problem as drawn, before it is rounded to the dtype of a run.

    Attributes:
        start: `[n]`, where the inner solver starts.
        outer: `[m]`.
        data: its numbers.
        truth: `(start, outer, data) -> Truth`, of the rounded numbers.
    """

    start: np.ndarray
    outer: np.ndarray
    data: Data
    truth: Callable[[np.ndarray, Data], Truth]


def inner_objective(w, x, p):
    y = p.rotation @ w
    r = y - (p.moves @ x + p.offset)
    # Where there is no quartic term, r may be large enough to overflow in it.
    fourth = jnp.where(p.quartic > 0, r, 0) ** 4
    bowl = r @ (p.hessian @ r) + (x @ p.slopes) @ (r * r)
    walls = jnp.sum(p.quartic * fourth) / 4
    cone = jnp.sum(p.pseudo_huber * (jnp.sqrt(1 + r * r) - 1))
    return p.constant + bowl / 2 + walls + cone - y @ (p.linear + p.mixed @ x)


def outer_objective(w, x, p):
    return _outer(p.readout @ w, x, p)


def _outer(z, x, p):
    q = z - p.target
    above = jnp.maximum(q, 0)
    smooth = jnp.sum(p.square * q * q) / 2 + p.slope @ z + p.direct @ x
    kinked = p.hinge @ above + p.squared_hinge @ (above * above)
    return smooth + kinked + p.clipped @ (jnp.clip(q, -1, 1) ** 2)


def outer_gradient(data: Data, inner: exact_answers.Vector) -> exact_answers.Vector:
    """dF/dw without rounding."""
    readout = rational(data.readout)
    fields = (data.target, data.square, data.hinge, data.squared_hinge)
    rows = zip(
        exact_answers.apply(readout, inner),
        *map(rational, (*fields, data.clipped, data.slope)),
        strict=True,
    )
    slopes = []
    for z, t, m, h, s, b, e in rows:
        q = z - t
        kinked = (h + 2 * s * q) if q > 0 else 0
        clipped = 2 * b * q if abs(q) < 1 else 0
        slopes.append(m * q + e + kinked + clipped)
    return exact_answers.apply(exact_answers.transpose(readout), slopes)


# The leaves of the family of leaves, in the order of the vector.


def split(vector):
    """kernel [2], small [1], bias [] (no x in its gradient), unread [] (not in F)."""
    return {
        "kernel": vector[..., :2],
        "small": vector[..., 2:3],
        "bias": vector[..., 3],
        "unread": vector[..., 4],
    }


def join(tree):
    parts = (tree["kernel"], tree["small"], tree["bias"][None], tree["unread"][None])
    return jnp.concatenate(parts)


def inner_objective_of_leaves(w, x, p):
    z = join(w)
    pull = p.linear + p.mixed @ jnp.concatenate([x["a"], x["b"][None]])
    # No row of B for the bias, so that its gradient contains no x.
    touched = w["kernel"] @ pull[:2] + w["small"] @ pull[2:3] + w["unread"] * pull[4]
    bowl = z @ (p.hessian @ z) / 2
    return p.constant + bowl - touched - w["bias"] * p.linear[3]


def outer_objective_of_leaves(w, x, p):
    # Without "unread": its last coefficient is never used.
    z = jnp.concatenate([w["kernel"], w["small"], w["bias"][None]])
    fields = ("target", "square", "hinge", "squared_hinge", "clipped", "slope")
    seen = p._replace(**{name: getattr(p, name)[:4] for name in fields})
    return _outer(z, jnp.concatenate([x["a"], x["b"][None]]), seen)


def outer_tree(vector):
    return {"a": vector[..., :2], "b": vector[..., 2]}


# Generators.


def blank(n: int = 4) -> Data:
    m = NUM_OUTER
    zero, eye = np.zeros(n), np.eye(n)
    return Data(
        hessian=np.zeros((n, n)),
        slopes=np.zeros((m, n)),
        linear=zero,
        mixed=np.zeros((n, m)),
        offset=zero,
        moves=np.zeros((n, m)),
        quartic=zero,
        pseudo_huber=zero,
        rotation=eye,
        constant=np.zeros(()),
        readout=eye,
        target=zero,
        square=zero,
        hinge=zero,
        squared_hinge=zero,
        clipped=zero,
        slope=zero,
        direct=np.zeros(m),
    )


def power(rng, eps, low, high):
    """eps to a random power."""
    return eps ** rng.uniform(low, high)


def orthogonal(rng, n):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def from_eigenvalues(basis, values):
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def convex(rng, n, smallest):
    """A random matrix with eigenvalues from `smallest` to 1."""
    values = smallest ** np.append([0.0, 1.0], rng.uniform(size=n - 2))
    return from_eigenvalues(orthogonal(rng, n), values)


def direct(rng):
    """dF/dx: half of the problems have none."""
    size = rng.integers(2) * 10 ** rng.uniform(-3, 1)
    return size * rng.normal(size=NUM_OUTER)


def of_quadratic(outer, data):
    args = (data.hessian, data.slopes, data.linear, data.mixed, outer)
    return exact_answers.quadratic(*map(rational, args))


def of_centred(outer, data):
    args = (data.hessian, data.slopes, data.offset, data.moves, outer)
    return exact_answers.centred(*map(rational, args))


def of_double_well(outer, data):
    args = (data.linear, data.mixed, outer, data.rotation)
    head = map(rational, (data.hessian, data.slopes, data.quartic[0]))
    return exact_answers.double_well(*head, *map(rational, args))


def quadratic_problem(rng, eps, smallest, n=4):
    """A strongly convex quadratic; the curvature depends on x in half of the draws."""
    hessian = convex(rng, n, smallest)
    size = rng.integers(2) * 0.3 * smallest ** rng.uniform()
    outer = rng.uniform(0.1, 1, size=NUM_OUTER)
    solution = rng.normal(size=n)
    moderate = rng.integers(2)  # else x moves the weak directions far
    mixed = rng.normal(size=(n, NUM_OUTER))
    mixed = hessian @ mixed if moderate else mixed * smallest ** rng.uniform()
    data = blank(n)._replace(
        hessian=hessian,
        slopes=size * rng.uniform(size=(NUM_OUTER, n)),
        linear=hessian @ solution,
        mixed=mixed,
        target=rng.normal(size=n),
        square=rng.uniform(0.5, 2, size=n),
        direct=direct(rng),
    )
    return Draw(np.zeros(n), outer, data, of_quadratic)


def centred_problem(rng, smallest, distance):
    """Convex, not quadratic; started at a distance from the solution."""
    outer = rng.uniform(0.1, 1, size=NUM_OUTER)
    moves, offset = rng.normal(size=(4, NUM_OUTER)), rng.normal(size=4)
    solution = moves @ outer + offset
    away = rng.normal(size=4)
    away *= distance / np.linalg.norm(away)
    data = blank()._replace(
        hessian=convex(rng, 4, smallest),
        slopes=rng.integers(2) * 0.2 * rng.uniform(size=(NUM_OUTER, 4)),
        offset=offset,
        moves=moves,
        quartic=rng.integers(2) * rng.uniform(size=4) / (1 + distance**2),
        pseudo_huber=rng.integers(2) * rng.uniform(size=4),
        target=rng.normal(size=4),
        square=rng.uniform(0.5, 2, size=4),
        direct=direct(rng),
    )
    return Draw(solution + away, outer, data, of_centred)


def ill_conditioned(rng, eps):
    """Condition numbers from 1 to one over the rounding unit."""
    return quadratic_problem(rng, eps, power(rng, eps, 0, 1))


def weak_directions(rng, eps):
    """dF/dw is nearly orthogonal to the weak direction of H, which x moves far."""
    small, part = power(rng, eps, 0.3, 0.55), power(rng, eps, 0.25, 0.6)
    hessian = np.eye(4)
    if rng.integers(2):  # in a plane, the other axes have nothing to do
        angle = rng.uniform(0, 2 * np.pi)
        strong = np.array([np.cos(angle), np.sin(angle), 0, 0])
        weak = np.array([-np.sin(angle), np.cos(angle), 0, 0])
        hessian[:2, :2] = 0
        hessian += np.outer(strong, strong) + small * np.outer(weak, weak)
    else:
        basis = orthogonal(rng, 4)
        values = np.array([1.0, *rng.uniform(0.1, 1, size=2), small])
        hessian = from_eigenvalues(basis, values)
        strong, weak = basis[:, :3] @ rng.normal(size=3), basis[:, 3]
    linear = rng.normal() * strong + small * rng.normal() * weak
    solution = np.linalg.solve(hessian, linear)
    data = blank()._replace(
        hessian=hessian,
        linear=linear,
        mixed=orthogonal(rng, 4)[:, :NUM_OUTER] if rng.integers(2) else np.eye(4, 3),
        target=solution - strong - part * weak,
        square=np.ones(4),
    )
    return Draw(np.zeros(4), np.zeros(NUM_OUTER), data, of_quadratic)


def indefinite(rng, eps):
    """One negative eigenvalue: no argmin; half of the draws hide it from G and F."""
    negative = -power(rng, eps, 0, 0.85)
    draw = quadratic_problem(rng, eps, 10 ** rng.uniform(-2, 0))
    data = draw.data._replace(slopes=np.zeros((NUM_OUTER, 4)))
    if rng.integers(2):
        values = np.array([1.0, *rng.uniform(0.1, 1, size=2), negative])
        data = data._replace(hessian=from_eigenvalues(orthogonal(rng, 4), values))
    else:
        hessian = np.diag([0.0, 0.0, 0.0, negative])
        hessian[:3, :3] = convex(rng, 3, 10 ** rng.uniform(-2, 0))
        visible = rng.integers(2)  # to F
        seen = np.array([1.0, 1.0, 1.0, visible])
        data = data._replace(
            hessian=hessian,
            linear=rng.normal(size=4) * [1, 1, 1, 0],
            mixed=rng.normal(size=(4, NUM_OUTER)) * [[1], [1], [1], [0]],
            target=data.target * seen,
        )
    return draw._replace(data=data)


HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def symmetric_saddles(rng, eps):
    """A double well, started on the ridge between its minima or next to it."""
    level = 0.5 * 10 ** rng.uniform(-2, 0)
    hessian = np.diag([-level, 0.0, 0.0, 0.0])
    hessian[1:, 1:] = convex(rng, 3, 10 ** rng.uniform(-2, 0))
    slopes = np.zeros((NUM_OUTER, 4))
    slopes[:, 0] = -level * rng.uniform(0.1, 0.3, size=NUM_OUTER)
    even = rng.integers(2)  # F, too, does not see on which side of the ridge w is
    scale = 10.0 ** (-8 * rng.uniform() * (rng.uniform() < 0.25))
    near = power(rng, eps, 0.2, 0.9) * (rng.uniform() < 0.25)
    rotation = HADAMARD if rng.integers(2) else np.eye(4)
    data = blank()._replace(
        hessian=scale * hessian,
        slopes=scale * slopes,
        linear=scale * rng.normal(size=4) * [0, 1, 1, 1],
        mixed=scale * rng.normal(size=(4, NUM_OUTER)) * [[0], [1], [1], [1]],
        quartic=scale * level * np.array([rng.uniform(0.3, 3), 0, 0, 0]),
        rotation=rotation,
        readout=rotation,
        target=rng.normal(size=4) * [1 - even, 1, 1, 1],
        square=rng.uniform(0.5, 2, size=4),
        direct=direct(rng),
    )
    outer = rng.uniform(0.1, 1, size=NUM_OUTER)
    return Draw(near * rotation[0], outer, data, of_double_well)


def singular(rng, eps):
    """Rank 2 of 4, in small integers, so that the Hessian is singular without rounding.

    F sees only what G determines (3 of 8), or sees more (2), or there is no minimum, or
    none for another x (2), or there is one of fourth order (1).
    """
    while True:
        factor = rng.integers(-3, 4, size=(2, 4)).astype(float)
        if np.linalg.matrix_rank(factor) == 2:
            break
    scale = 1 / 64
    hessian = scale * factor.T @ factor
    outer = rng.integers(1, 9, size=NUM_OUTER) / 8
    data = blank()._replace(
        hessian=hessian,
        linear=factor.T @ (rng.integers(-8, 9, size=2) / 32),
        mixed=factor.T @ (rng.integers(-8, 9, size=(2, NUM_OUTER)) / 32),
        square=np.ones(4),
        target=rng.normal(size=4),
        direct=direct(rng),
    )
    case = rng.integers(8)
    start = (rng.integers(-8, 9, size=4) / 8) * rng.integers(2)
    if case == 7:
        moves = rng.normal(size=(4, NUM_OUTER))
        data = data._replace(
            linear=np.zeros(4),
            mixed=np.zeros((4, NUM_OUTER)),
            offset=rng.normal(size=4),
            moves=moves,
            quartic=rng.uniform(0.01, 0.03, size=4),
        )
        return Draw(start, outer, data, of_centred)
    if case < 3:
        data = data._replace(readout=np.concatenate([factor, factor[::-1]]) / 4)
    if case in (5, 6):
        # e_j is outside of the range for some j.
        onto = factor.T @ np.linalg.pinv(factor.T)
        unit = np.eye(4)[np.argmin(np.diag(onto))]
        where = rng.integers(2)
        data = data._replace(
            linear=data.linear + (1 - where) * unit,
            mixed=data.mixed + where * unit[:, None],
        )

    def truth(outer, data):
        args = (factor, np.float64(scale), data.linear, data.mixed, outer, data.readout)
        return exact_answers.over_parametrised(*map(rational, args))

    return Draw(start, outer, data, truth)


def scaled(rng, eps):
    """G and F times 1e-8 to 1e8, and a constant added to G."""
    if rng.integers(2):
        draw = quadratic_problem(rng, eps, power(rng, eps, 0, 0.3))
    else:
        draw = centred_problem(rng, power(rng, eps, 0, 0.3), 10 ** rng.uniform(-2, 1))
    inner, outer = 10 ** rng.uniform(-8, 8, size=2)
    constant = rng.normal() * power(rng, eps, -0.87, 0) * rng.integers(2)
    data = draw.data
    names = ("hessian", "slopes", "linear", "mixed", "quartic", "pseudo_huber")
    changes = {name: inner * getattr(data, name) for name in names}
    changes |= {name: outer * getattr(data, name) for name in ("square", "direct")}
    return draw._replace(
        data=data._replace(constant=np.asarray(inner * constant), **changes)
    )


def non_smooth(rng, eps):
    """Hinges and clips, whose kinks lie anywhere between the start and the solution."""
    del eps
    distance = 10 ** rng.uniform(-1, 1.5)
    draw = centred_problem(rng, 10 ** rng.uniform(-3, 0), distance)
    data = draw.data
    solution = data.moves @ draw.outer + data.offset
    place = rng.uniform(-0.3, 1.3, size=4)
    near = rng.normal(size=4) * 10 ** rng.uniform(-5, 0)
    kink = solution + np.where(rng.integers(2, size=4), near, place * distance)
    kink = np.where(
        rng.integers(2, size=4), kink, solution + place * (draw.start - solution)
    )
    which = rng.integers(3)
    weight = rng.uniform(0.5, 2, size=4)
    return draw._replace(
        data=data._replace(
            target=kink,
            square=np.zeros(4),
            hinge=weight * (which == 0),
            squared_hinge=weight * (which == 1),
            clipped=weight * (which == 2),
        )
    )


def stopped_early(rng, eps):
    """From anywhere between the solution to rounding and far away."""
    distance = 10 ** rng.uniform(0, 1) * power(rng, eps, 0, 0.8)
    if rng.integers(2):
        return centred_problem(rng, 10 ** rng.uniform(-3, 0), distance)
    draw = quadratic_problem(rng, eps, 10 ** rng.uniform(-3, 0))
    data = draw.data
    hessian = data.hessian + np.diag(draw.outer @ data.slopes)
    solution = np.linalg.solve(hessian, data.linear + data.mixed @ draw.outer)
    return draw._replace(start=solution + distance * rng.normal(size=4) / 2)


def disparate_leaves(rng, eps):
    """Leaves of sizes from 1e-6 to 1e6, solved at different speeds."""
    del eps
    coupling = rng.integers(4)
    spread = 6 if coupling <= 1 else 2
    powers = rng.uniform([0, 0, -1, -0.5, 0], [1, 1, 0, 0.5, 0]) * spread
    powers[1] = powers[0]
    sizes = 10.0**powers
    if coupling <= 1:  # blocks that do not know of each other
        hessian = np.diag(10 ** rng.uniform(-2, 0, size=5))
        hessian[:2, :2] = convex(rng, 2, 10 ** rng.uniform(-2, 0))
    elif coupling == 2:
        hessian = convex(rng, 5, 10 ** rng.uniform(-2, 0))
    else:  # in units of the leaves
        hessian = convex(rng, 5, 10 ** rng.uniform(-1, 0)) / np.outer(sizes, sizes)
        hessian /= np.linalg.norm(hessian, 2)
    mixed = hessian @ (sizes[:, None] * rng.normal(size=(5, NUM_OUTER)))
    mixed[3] = 0
    solution = sizes * rng.normal(size=5)
    outer = rng.uniform(0.1, 1, size=NUM_OUTER)
    weight = rng.uniform(0.5, 2, size=5) * [1, 1, 1, 1, 0]
    # Every leaf counts alike, or one counts alone.
    alone = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])[
        rng.integers(3)
    ]
    weight = weight * (alone if rng.integers(2) else 1)
    data = blank(5)._replace(
        hessian=(hessian + hessian.T) / 2,
        linear=hessian @ solution,
        mixed=mixed,
        target=sizes * rng.normal(size=5),
        square=weight / sizes**2,
        direct=direct(rng) * rng.integers(2),
    )
    return Draw(np.zeros(5), outer, data, of_quadratic)


class Family(NamedTuple):
    """A generator, and the solvers and rules that its problems are given to."""

    draw: Callable[[np.random.Generator, float], Draw]
    pairs: str = "standard"
    leaves: bool = False


FAMILIES = {
    "ill-conditioned": Family(ill_conditioned),
    "weak directions": Family(weak_directions),
    "indefinite": Family(indefinite, "indefinite"),
    "symmetric saddles": Family(symmetric_saddles),
    "singular": Family(singular),
    "scaled": Family(scaled, "scale-free"),
    "non-smooth": Family(non_smooth, "unfinished"),
    "stopped early": Family(stopped_early, "early"),
    "disparate leaves": Family(disparate_leaves, "leaves", leaves=True),
}
