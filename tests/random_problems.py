"""Random problems with exact answers against what is trusted: counts, as a table.

    python tests/random_problems.py --family="weak directions" --num=200

A hypergradient is *wrong silently* if it is trusted and its error is above rtol: of
`value_and_hypergradient` relative to |dF/dx| + |J' u|, of `jax.grad` through `argmin`,
which takes dF/dw as given, relative to |J' u|; there, a trusted gradient at an inner
variable of which a leaf is off by more than rtol is counted as well (`w wrong`).  It is
a *false alarm* if it is not trusted, although the error (for `jax.grad` that of w, too)
is at most rtol / 10 and there is one right answer.
"""

import argparse
import functools
import math
import time
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import exact_answers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import random_families
from exact_answers import Truth, rational
from random_families import FAMILIES, Data, Family

import bilevel
from bilevel import (
    hypergradients,
    inner_solvers,
    linear_solvers,
    preconditioners,
)

RTOL = {"float64": 1e-4, "float32": 1e-2}
PATHS = ("hypergradient", "grad")
LANES = 556  # problems of one call

DENSE = linear_solvers.dense()


def descent(step_size: float, max_steps: int) -> inner_solvers.InnerSolver:
    return inner_solvers.gradient_descent(step_size, max_steps=max_steps)


# Adam, since its steps do not depend on the scale of the objective.
ADAM = optax.adam(optax.exponential_decay(0.3, 60, 0.5), eps=1e-16)
EARLY = {
    "descent, 20 steps": (descent(0.3, 20), hypergradients.implicit()),
    "L-BFGS, 4 steps, dense": (
        inner_solvers.lbfgs(max_steps=4),
        hypergradients.implicit(DENSE),
    ),
    "L-BFGS, 8 steps, nudged": (
        inner_solvers.lbfgs(max_steps=8),
        hypergradients.nudged(1e-3),
    ),
}


def absolute_hessian(w, x, p):
    """A rough preconditioner: |H|, and a tenth of its mean eigenvalue more."""
    hessian = jax.hessian(random_families.inner_objective)(w, x, p)
    values, vectors = jnp.linalg.eigh(hessian)
    sizes = jnp.abs(values)
    sizes = sizes + 0.1 * jnp.mean(sizes) + jnp.finfo(w.dtype).tiny
    return lambda r: vectors @ ((vectors.T @ r) / sizes)


LBFGS_DENSE = (inner_solvers.lbfgs(max_steps=100), hypergradients.implicit(DENSE))
STANDARD = {
    "default": (None, None),
    "descent": (descent(0.8, 1000), hypergradients.implicit()),
    "L-BFGS, dense": LBFGS_DENSE,
    "descent, nudged": (descent(0.8, 1000), hypergradients.nudged(1e-3)),
}
PRECONDITIONED = preconditioners.from_function(absolute_hessian)
PAIRS: dict[str, dict[str, tuple[Any, ...]]] = {
    "standard": {**STANDARD, "preconditioned": (None, None, PRECONDITIONED)},
    "leaves": STANDARD,
    # Fewer steps: descent must not reach the largest float.
    "indefinite": {
        "default": (None, None),
        "descent, 50 steps": (descent(0.8, 50), hypergradients.implicit()),
        "L-BFGS, dense": LBFGS_DENSE,
        "descent, 50 steps, nudged": (descent(0.8, 50), hypergradients.nudged(1e-3)),
    },
    "scale-free": {
        "default": (None, None),
        "Adam": (
            inner_solvers.gradient_descent(ADAM, max_steps=1000),
            hypergradients.implicit(),
        ),
        "L-BFGS, dense": LBFGS_DENSE,
        "Newton, nudged": (inner_solvers.newton(), hypergradients.nudged(1e-3)),
    },
    "unfinished": {"default": (None, None), **EARLY},
    "early": {
        "Newton, 2 steps": (inner_solvers.newton(max_steps=2), None),
        **EARLY,
    },
}


def is_trusted(flag: Any) -> np.ndarray:
    """`info.trustworthy` as Booleans: True only where it was looked at and found so."""
    return np.asarray(flag) == 1


class Problems(NamedTuple):
    """Problems of one family, rounded to one dtype; the leading axis counts them."""

    family: Family
    start: np.ndarray
    outer: np.ndarray
    data: Data
    truths: list[Truth]


@functools.cache
def problems(name: str, num: int, dtype: str, seed: int = 0) -> Problems:
    family = FAMILIES[name]
    eps = float(np.finfo(dtype).eps)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    starts, outers, rows, truths = [], [], [], []
    for _ in range(num):
        draw = family.draw(rng, eps)
        outer = np.asarray(draw.outer, dtype)
        data = Data(*(np.asarray(field, dtype) for field in draw.data))
        starts.append(np.asarray(draw.start, dtype))
        outers.append(outer)
        rows.append(data)
        truths.append(draw.truth(outer, data))
    stacked = Data(*(np.stack(field) for field in zip(*rows, strict=True)))
    return Problems(family, np.stack(starts), np.stack(outers), stacked, truths)


class Result(NamedTuple):
    """What a program returned, as vectors, one row for each problem."""

    inner: np.ndarray
    cotangent: np.ndarray | None  # dF/dw at the computed w, where it is taken as given
    gradient: np.ndarray
    trusted: np.ndarray


@functools.cache
def program(
    leaves: bool, path: str, solver: Any, rule: Any, preconditioner: Any = None
) -> Callable:
    """(start, outer, data) -> arrays, compiled once for all families that share it."""
    if leaves:
        inner_objective = random_families.inner_objective_of_leaves
        outer_objective = random_families.outer_objective_of_leaves
        split, outer_tree = random_families.split, random_families.outer_tree
    else:
        inner_objective = random_families.inner_objective
        outer_objective = random_families.outer_objective
        split = outer_tree = lambda vector: vector

    def report(start, x, p):
        evaluate = bilevel.value_and_hypergradient(
            bilevel.Problem(
                inner_objective, outer_objective, preconditioner=preconditioner
            ),
            solver,
            rule,
        )
        out = evaluate(split(start), outer_tree(x), bilevel.Batches(p, p))
        return out.inner, None, out.gradient, out.info.trustworthy

    def pulled(start, x, p):
        x = outer_tree(x)

        def pull(on_untrustworthy):
            solve = bilevel.argmin(
                inner_objective,
                solver,
                rule,
                on_untrustworthy=on_untrustworthy,
                preconditioner=preconditioner,
            )
            w, pull = jax.vjp(lambda x: solve(split(start), x, p)[0], x)
            v = jax.grad(outer_objective)(w, x, p)
            return w, v, pull(v)[0]

        # NaN says what is distrusted, and hides how wrong it would have been.
        w, v, gradient = pull("nan")
        bad = jnp.stack([jnp.isnan(g).any() for g in jax.tree.leaves(gradient)]).any()
        plain = pull("ignore")[2]
        gradient = jax.tree.map(lambda g, h: jnp.where(bad, h, g), gradient, plain)
        return w, v, gradient, ~bad

    return jax.jit(jax.vmap(report if path == "hypergradient" else pulled))


@functools.cache
def inner_gradient(leaves: bool) -> Callable:
    """dG/dw as a vector: `(inner, outer, data) -> [n]`, for checks of the answers."""

    def of_leaves(w, x, p):
        split, tree = random_families.split, random_families.outer_tree
        return random_families.inner_objective_of_leaves(split(w), tree(x), p)

    objective = of_leaves if leaves else random_families.inner_objective
    return jax.jit(jax.grad(objective))


def flat(tree: Any) -> np.ndarray:
    """Vectors, in the order of `random_families.split`."""
    if isinstance(tree, dict):
        order = ("kernel", "small", "bias", "unread", "a", "b")
        parts = [np.asarray(tree[name]) for name in order if name in tree]
        return np.concatenate([x.reshape(len(x), -1) for x in parts], axis=1)
    return np.asarray(tree)


def evaluate(batch: Problems, pair: str, path: str) -> Result:
    members = PAIRS[batch.family.pairs][pair]
    compiled = program(batch.family.leaves, path, *members)
    num = len(batch.truths)
    lanes = min(num, LANES)
    arguments = (batch.start, batch.outer, batch.data)
    chunks = []
    for first in range(0, num, lanes):
        # The last chunk is filled up: another shape would be compiled anew.
        rows = np.arange(first, first + lanes) % num
        chunk = jax.tree.map(lambda a, rows=rows: a[rows], arguments)
        w, v, gradient, flags = jax.device_get(compiled(*chunk))
        chunks.append((flat(w), v if v is None else flat(v), flat(gradient), flags))
    w, v, gradient, flags = (
        None if parts[0] is None else np.concatenate(parts)[:num]
        for parts in zip(*chunks, strict=True)
    )
    assert w is not None
    assert gradient is not None
    return Result(w, v, gradient, is_trusted(flags))


class Errors(NamedTuple):
    """Relative errors; inf where there is no right answer."""

    gradient: float
    inner: float  # of the worst leaf


WRONG = Errors(math.inf, math.inf)
LEAVES = (slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5))


def errors(batch: Problems, result: Result, i: int) -> Errors:
    """Those of problem i, against the answer that is nearest."""
    w, gradient = result.inner[i], result.gradient[i]
    if not (np.isfinite(w).all() and np.isfinite(gradient).all()):
        return WRONG
    data = Data(*(field[i] for field in batch.data))
    inner, got = rational(w), rational(gradient)
    leaves = LEAVES if batch.family.leaves else (slice(None),)
    best, nearest = WRONG, math.inf
    for answer in batch.truths[i].answers(inner):
        if result.cotangent is None:
            direct = rational(data.direct)
            cotangent = random_families.outer_gradient(data, answer.inner)
        else:
            direct = [Fraction(0)] * len(got)
            cotangent = rational(result.cotangent[i])
        through = exact_answers.apply(answer.derivative, cotangent)
        off = exact_answers.subtract(got, exact_answers.add(direct, through))
        total = exact_answers.norm(direct) + exact_answers.norm(through)
        gap = exact_answers.subtract(inner, answer.inner)
        apart = [
            exact_answers.relative(gap[leaf], exact_answers.norm(answer.inner[leaf]))
            for leaf in leaves
        ]
        distance = exact_answers.norm(gap)
        if distance < nearest:
            nearest = distance
            best = Errors(exact_answers.relative(off, total), max(apart))
    return best


class Counts(NamedTuple):
    """One line of the table."""

    num: int
    trusted: int
    wrong: int  # trusted, error above rtol
    inner_wrong: int  # under jax.grad: trusted, the error of w above rtol
    right: int  # error at most rtol / 10, and one right answer
    alarms: int  # right, not trusted
    nan: int  # NaN that nobody asked for, where there is a minimum
    worst: float  # the largest error of those trusted
    worst_at: int  # its index


def count(batch: Problems, result: Result, dtype: str) -> Counts:
    rtol = RTOL[dtype]
    given = result.cotangent is not None
    found = [errors(batch, result, i) for i in range(len(batch.truths))]
    error = np.array([e.gradient for e in found])
    inner = np.array([e.inner if given else 0.0 for e in found])
    one = np.array([t.kind == "unique" for t in batch.truths])
    some = np.array([t.kind != "none" for t in batch.truths])
    right = one & (error <= rtol / 10) & (inner <= rtol / 10)
    finite = np.isfinite(result.inner).all(axis=1)
    finite &= np.isfinite(result.gradient).all(axis=1)
    trusted = np.where(result.trusted, error, 0.0)
    return Counts(
        num=len(error),
        trusted=int(result.trusted.sum()),
        wrong=int((result.trusted & ~(error <= rtol)).sum()),
        inner_wrong=int((result.trusted & (error <= rtol) & ~(inner <= rtol)).sum()),
        right=int(right.sum()),
        alarms=int((right & ~result.trusted).sum()),
        nan=int((some & ~finite).sum()),
        worst=float(trusted.max()),
        worst_at=int(trusted.argmax()),
    )


def judge(
    name: str, pair: str, path: str, dtype: str, num: int, seed: int = 0
) -> Counts:
    """The counts of `num` problems of one family by one pair of solver and rule."""
    batch = problems(name, num, dtype, seed)
    result = evaluate(batch, pair, path)
    return count(batch, result, dtype)


HEAD = (
    f"{'family':18} {'solver and rule':26} {'path':13} {'dtype':8} "
    "   n trusted wrong w-wrong right alarms nan   worst (problem)  seconds"
)


def line(name: str, pair: str, path: str, dtype: str, c: Counts, seconds: float) -> str:
    return (
        f"{name:18} {pair:26} {path:13} {dtype:8} {c.num:4} {c.trusted:7} {c.wrong:5} "
        f"{c.inner_wrong:7} {c.right:5} {c.alarms:6} {c.nan:3} {c.worst:7.1e} "
        f"({c.worst_at}) {seconds:8.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, help="default: all")
    parser.add_argument("--num", type=int, default=1112, help="problems of a family")
    parser.add_argument("--dtype", choices=RTOL, help="default: both")
    parser.add_argument("--path", choices=PATHS, help="default: both")
    parser.add_argument("--pair", type=int, help="0 to 4; default: all")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
    print(HEAD)
    for dtype in [flags.dtype] if flags.dtype else RTOL:
        for name in [flags.family] if flags.family else FAMILIES:
            pairs = list(PAIRS[FAMILIES[name].pairs])
            for pair in pairs if flags.pair is None else [pairs[flags.pair]]:
                for path in [flags.path] if flags.path else PATHS:
                    start = time.perf_counter()
                    try:
                        c = judge(name, pair, path, dtype, flags.num, flags.seed)
                    except Exception as error:
                        print(
                            f"{name:18} {pair:26} {path:13} {dtype:8} raised "
                            f"{type(error).__name__}: {str(error)[:60]}",
                            flush=True,
                        )
                        continue
                    seconds = time.perf_counter() - start
                    print(line(name, pair, path, dtype, c, seconds), flush=True)


if __name__ == "__main__":
    main()
