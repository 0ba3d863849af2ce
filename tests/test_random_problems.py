"""What is trusted is right: random problems with exact answers, of nine families.

By default 34 problems of each family, with default settings.  All 10 008, with three
more pairs of solver and rule, in both precisions: `pytest -n0 -m random` (it prints the
table; so does `python tests/random_problems.py`, of one family if told to).
"""

import time
from fractions import Fraction

import numpy as np
import pytest
import random_problems
from exact_answers import apply, inverse, multiply, rational, square_root
from random_families import FAMILIES
from random_problems import PAIRS, PATHS, RTOL, Counts

SAMPLE, ALL = 34, 1112
SLOW = pytest.mark.slow


def groups():
    """Programs, each with the (family, pair) that share it: compiled once in a test."""
    shared = {}
    for name, family in FAMILIES.items():
        for pair, parts in PAIRS[family.pairs].items():
            shared.setdefault((family.leaves, parts), []).append((name, pair))
    return list(shared.values())


GROUPS = groups()


# A singular Hessian is never trusted by default, although the gradient may be right;
# the damped derivative is what one can be promised there.
NEVER_TRUSTED = ("singular",)


def check(counts: Counts) -> None:
    assert counts.wrong == 0
    assert counts.inner_wrong == 0
    assert counts.nan == 0


def too_many_alarms(found: dict[str, Counts]) -> bool:
    """Over one in ten; a single family may have more (rounding is judged by luck)."""
    counted = [c for name, c in found.items() if name not in NEVER_TRUSTED]
    right = sum(c.right for c in counted)
    return sum(c.alarms for c in counted) > max(2, right // 10)


def of_default(leaves: bool):
    (found,) = (
        group
        for group in GROUPS
        if group[0][1] == "default" and FAMILIES[group[0][0]].leaves == leaves
    )
    return [cell for cell in found if cell[0] != "non-smooth"]


UNFINISHED = [
    ("non-smooth", "descent, 20 steps"),
    ("stopped early", "descent, 20 steps"),
]


@pytest.mark.parametrize(
    ("cells", "path", "dtype"),
    [
        pytest.param(of_default(False), "hypergradient", "float64", id="float64"),
        pytest.param(
            of_default(False), "grad", "float64", id="float64-grad", marks=SLOW
        ),
        pytest.param(
            of_default(False), "hypergradient", "float32", id="float32", marks=SLOW
        ),
        pytest.param(of_default(True), "hypergradient", "float64", id="leaves"),
        pytest.param(of_default(True), "grad", "float64", id="leaves-grad", marks=SLOW),
        pytest.param(
            UNFINISHED,
            "hypergradient",
            "float64",
            id="unfinished",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_never_trusted_when_wrong(cells, path: str, dtype: str):
    found = {
        name: random_problems.judge(name, pair, path, dtype, SAMPLE)
        for name, pair in cells
    }
    wrong = {name: c for name, c in found.items() if c.wrong or c.inner_wrong or c.nan}
    assert not wrong
    right = sum(c.right for c in found.values())
    assert not too_many_alarms(found), {
        n: (c.alarms, c.right) for n, c in found.items()
    }
    assert right > SAMPLE // 4  # an instrument that saw nothing right would say nothing


@pytest.mark.random
@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "cells", [pytest.param(g, id=f"{g[0][0]}, {g[0][1]}") for g in GROUPS]
)
def test_never_trusted_when_wrong_at_length(cells, path, dtype, capsys):
    failures, found = [], {}
    for name, pair in cells:
        start = time.perf_counter()
        counts = random_problems.judge(name, pair, path, dtype, ALL)
        seconds = time.perf_counter() - start
        text = random_problems.line(name, pair, path, dtype, counts, seconds)
        found[name] = counts
        with capsys.disabled():
            print(f"\n{text}", end="")  # noqa: T201
        try:
            check(counts)
        except AssertionError:
            failures.append(text)
    assert not failures, "\n".join([random_problems.HEAD, *failures])
    assert not too_many_alarms(found), {
        n: (c.alarms, c.right) for n, c in found.items()
    }


# The answers themselves.


def test_exact_inverse_and_its_sign():
    matrix = rational(np.array([[0.0, 2.0, 1.0], [2.0, 3.0, 0.5], [1.0, 0.5, -4.0]]))
    inverted, positive = inverse(matrix)
    assert multiply(matrix, inverted) == rational(np.eye(3))
    assert not positive
    assert inverse(rational(np.array([[2.0, 1.0], [1.0, 2.0]])))[1]
    assert not inverse(rational(np.array([[1.0, 2.0], [2.0, 1.0]])))[1]
    assert abs(square_root(Fraction(2)) ** 2 - 2) < Fraction(1, 10**79)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_stationary_and_derivatives_are_differences(name: str):
    """Against G itself, in floats: its gradient is zero at w*(x) and at w*(x + dx)."""
    batch = random_problems.problems(name, SAMPLE, "float64")
    family = FAMILIES[name]
    seen = 0
    for i, truth in enumerate(batch.truths):
        start, outer = batch.start[i], batch.outer[i]
        data = random_problems.Data(*(field[i] for field in batch.data))
        for answer in truth.answers(rational(start)):
            w = np.array([float(entry) for entry in answer.inner])
            derivative = np.array(
                [[float(entry) for entry in row] for row in answer.derivative]
            )
            gradient = random_problems.inner_gradient(family.leaves)
            scale = np.abs(gradient(np.zeros_like(w), outer, data)).max()
            scale += np.abs(data.hessian).sum() * np.abs(w).max()
            assert np.abs(gradient(w, outer, data)).max() <= 1e-13 * scale
            step = 1e-4
            for j, row in enumerate(derivative):
                moved = outer + step * np.eye(len(outer))[j]
                size = 1 + np.abs(row).max() / (1 + np.abs(w).max())
                off = gradient(w + step * row, moved, data)
                # Second order in the step.
                assert (
                    np.abs(off).max() <= 50 * (step * size) ** 2 * scale + 1e-11 * scale
                )
            seen += 1
    assert seen > 0 or name == "indefinite"


def test_kinds_of_singular_problems():
    batch = random_problems.problems("singular", 200, "float32")
    kinds = [truth.kind for truth in batch.truths]
    assert {"unique", "set", "none", "degenerate"} == set(kinds)
    assert min(kinds.count(kind) for kind in set(kinds)) >= 10
    for kind in ("unique", "set"):
        answer = batch.truths[kinds.index(kind)].answers(rational(np.zeros(4)))[0]
        # Minimum norm: orthogonal to the null space, as a multiple of H.
        i = kinds.index(kind)
        hessian = rational(batch.data.hessian[i])
        mixed = rational(batch.data.mixed[i])
        assert (
            multiply(hessian, [list(r) for r in zip(*answer.derivative, strict=True)])
            == mixed
        )
        assert apply(hessian, answer.inner) is not None
