"""Exact answers to small bilevel problems, in rational arithmetic.

The entries of a problem are floats, hence rational numbers; its argmin, its derivative
and the hypergradient are computed from them without any rounding.  (A square root, of
the double well, is taken to 80 digits.)
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

Vector = list[Fraction]
Matrix = list[Vector]


class Answer(NamedTuple):
    """One minimiser w*, and the transposed derivative of it, `[len(x), len(w)]`."""

    inner: Vector
    derivative: Matrix


class Truth(NamedTuple):
    """What is true of one problem.

    Attributes:
        kind: "unique" (a minimum whose derivative every answer shares, or a pair of
            symmetric ones), "set" (many minima, of which the outer objective sees which
            one it is: only the minimum-norm derivative at the one that was returned can
            be meant), "degenerate" (a minimum with a singular Hessian: the derivative
            exists, but the implicit theorem does not give it), "none" (no minimum, or
            none nearby for another x).
        answers: `inner -> list of Answer`, the minimisers that a solver which ended at
            `inner` may have meant; no entry if there is none.
    """

    kind: str
    answers: Callable[[Vector], list[Answer]]


def rational(array: Any) -> Any:
    """A float, a vector or a matrix of NumPy as fractions."""
    if getattr(array, "ndim", 0):
        return [rational(row) for row in array]
    return Fraction(float(array))


def dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    return sum((p * q for p, q in zip(a, b, strict=True) if p and q), Fraction(0))


def apply(matrix: Matrix, vector: Vector) -> Vector:
    return [dot(row, vector) for row in matrix]


def transpose(matrix: Matrix) -> Matrix:
    return [list(row) for row in zip(*matrix, strict=True)]


def multiply(a: Matrix, b: Matrix) -> Matrix:
    columns = transpose(b)
    return [[dot(row, column) for column in columns] for row in a]


def add(a: Vector, b: Vector) -> Vector:
    return [p + q for p, q in zip(a, b, strict=True)]


def subtract(a: Vector, b: Vector) -> Vector:
    return [p - q for p, q in zip(a, b, strict=True)]


def inverse(matrix: Matrix) -> tuple[Matrix, bool]:
    """The inverse, and whether the matrix (if symmetric) is positive definite.

    Raises:
        ZeroDivisionError: the matrix is singular.
    """
    size = len(matrix)
    rows = [
        list(row) + [Fraction(int(i == j)) for j in range(size)]
        for i, row in enumerate(matrix)
    ]
    positive = True
    for i in range(size):
        # Without an exchange of rows the pivots tell the inertia (Sylvester).
        if rows[i][i] == 0:
            positive = False
            other = next((k for k in range(i, size) if rows[k][i] != 0), None)
            if other is None:
                raise ZeroDivisionError("singular matrix")
            rows[i], rows[other] = rows[other], rows[i]
        positive = positive and rows[i][i] > 0
        factor = 1 / rows[i][i]
        rows[i] = [entry * factor for entry in rows[i]]
        for k in range(size):
            if k != i and rows[k][i] != 0:
                ratio = rows[k][i]
                rows[k] = [a - ratio * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[size:] for row in rows], positive


def square_root(value: Fraction, digits: int = 80) -> Fraction:
    scale = 10**digits
    # The floor of sqrt(p / q) * scale; p / q is of moderate size here.
    return Fraction(math.isqrt(value.numerator * scale**2 // value.denominator), scale)


def norm(vector: Vector) -> float:
    """The Euclidean norm, rounded to a float."""
    try:
        return math.sqrt(float(dot(vector, vector)))
    except OverflowError:
        return math.inf


def relative(difference: Vector, total: float) -> float:
    """|difference| / total, where 0 / 0 is 0."""
    size = norm(difference)
    if size == 0:
        return 0.0
    return size / total if total > 0 else math.inf


# Truths of the forms of inner objective that `random_families` draws.


def _fixed(kind: str, answers: list[Answer]) -> Truth:
    return Truth(kind, lambda inner: answers)


NONE = _fixed("none", [])


def quadratic(
    hessian: Matrix, slopes: Matrix, c: Vector, b: Matrix, x: Vector
) -> Truth:
    """Of w' H(x) w / 2 - w'(c + B x), H(x) = H + diag(D' x), D `[len(x), len(w)]`."""
    shifts = apply(transpose(slopes), x)
    moved = [
        [entry + (shifts[i] if i == j else 0) for j, entry in enumerate(row)]
        for i, row in enumerate(hessian)
    ]
    try:
        solve, positive = inverse(moved)
    except ZeroDivisionError:
        return NONE
    if not positive:
        return NONE
    inner = apply(solve, add(c, apply(b, x)))
    rows = []
    for slope, column in zip(slopes, transpose(b), strict=True):
        push = [p - d * w for p, d, w in zip(column, slope, inner, strict=True)]
        rows.append(apply(solve, push))
    return _fixed("unique", [Answer(inner, rows)])


def centred(
    hessian: Matrix, slopes: Matrix, offset: Vector, moves: Matrix, x: Vector
) -> Truth:
    """Of a convex function of r = w - (L x + l), strictly so, minimal at r = 0."""
    shifts = apply(transpose(slopes), x)
    moved = [
        [entry + (shifts[i] if i == j else 0) for j, entry in enumerate(row)]
        for i, row in enumerate(hessian)
    ]
    answer = Answer(add(apply(moves, x), offset), transpose(moves))
    try:
        _, positive = inverse(moved)
    except ZeroDivisionError:
        return _fixed("degenerate", [answer])
    return _fixed("unique", [answer]) if positive else NONE


def double_well(
    hessian: Matrix,
    slopes: Matrix,
    quartic: Fraction,
    c: Vector,
    b: Matrix,
    x: Vector,
    rotation: Matrix,
) -> Truth:
    """Of k y0^4 / 4 - a(x) y0^2 / 2 + a quadratic in the other y, where y = R w."""
    level = -(hessian[0][0] + dot([row[0] for row in slopes], x))
    if level <= 0:
        raise ValueError("this draw has no double well")
    rest = quadratic(
        [row[1:] for row in hessian[1:]],
        [row[1:] for row in slopes],
        c[1:],
        b[1:],
        x,
    )
    (others,) = rest.answers([])
    back, _ = inverse(rotation)
    answers = []
    for sign in (1, -1):
        root = sign * square_root(level / quartic)
        inner = [root, *others.inner]
        derivative = [
            [-slope[0] / (2 * quartic * root), *row]
            for slope, row in zip(slopes, others.derivative, strict=True)
        ]
        answers.append(
            Answer(apply(back, inner), multiply(derivative, transpose(back)))
        )
    return _fixed("unique", answers)


def over_parametrised(
    factor: Matrix, scale: Fraction, c: Vector, b: Matrix, x: Vector, readout: Matrix
) -> Truth:
    """Of s |V w|^2 / 2 - w'(c + B x), V of full row rank: minimum-norm derivative.

    Args:
        readout: S; the outer objective is a function of S w.
    """
    solve, _ = inverse(multiply(factor, transpose(factor)))
    onto = multiply(transpose(factor), multiply(solve, factor))  # the range of H
    rhs = add(c, apply(b, x))
    if apply(onto, rhs) != rhs or multiply(onto, b) != b:
        return NONE
    twice = multiply(transpose(factor), multiply(multiply(solve, solve), factor))
    pseudo = [[entry / scale for entry in row] for row in twice]
    hessian = [
        [scale * entry for entry in row] for row in multiply(transpose(factor), factor)
    ]
    derivative = transpose(multiply(pseudo, b))

    def answers(inner: Vector) -> list[Answer]:
        gap = subtract(rhs, apply(hessian, inner))
        return [Answer(add(inner, apply(pseudo, gap)), derivative)]

    blind = multiply(readout, onto) == readout
    return Truth("unique" if blind else "set", answers)
