"""What works with what: every rule under every transformation and kind of model.

Each cell of the table is one test: it compares with a reference, or expects the error
that the table names.  `python tests/hypergradients/test_contracts.py` prints the table
for README, which must hold the same.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import bilevel
from bilevel import hypergradients
from bilevel.value_and_hypergradient import WarmStart

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from reference_problems import (
    Data,
    dense_hypergradient,
    distance,
    readout,
    ridge,
    ridge_solution,
)
from rules import EXTENSIONS, ROWS, STEP_SIZE, VARIANTS, Row

# What the columns share.

START = jnp.zeros(3)
OUTER = jnp.array([-0.8, 0.2, -0.3])
DIRECTION = jnp.array([0.5, -1.0, 0.25])


def _solve(
    row: Row,
    objective: Any = ridge,
    function: Any = readout,
    on_untrustworthy: Any = "ignore",
) -> Any:
    return bilevel.argmin(
        objective,
        row.solver,
        row.rule(row.nudge),
        on_untrustworthy=on_untrustworthy,
        outer_objective=function if row.full else None,
    )


def _loss(row: Row) -> Callable[[jax.Array, Data], jax.Array]:
    solve = _solve(row)
    return lambda x, batch: readout(solve(START, x, batch)[0], x, batch)


@functools.cache
def _compiled_gradient(row: Row) -> Callable[[jax.Array, Data], jax.Array]:
    return jax.jit(jax.grad(_loss(row)))


# References are compiled once, for all rows.


@functools.cache
def _dense(inverse: Any) -> Callable[[jax.Array, Data], jax.Array]:
    @jax.jit
    def reference(x: jax.Array, batch: Data) -> jax.Array:
        inner = ridge_solution(x, batch)
        return dense_hypergradient(ridge, readout, inner, x, batch, inverse)

    return reference


def _reference(row: Row, x: jax.Array, batch: Data) -> jax.Array:
    return _dense(row.inverse)(x, batch)


@functools.cache
def _dense_derivative(inverse: Any) -> Callable[[jax.Array, Data], jax.Array]:
    return jax.jit(jax.jacfwd(_dense(inverse)))


def _check(got: Any, expected: Any, row: Row, factor: float = 1.0) -> None:
    assert distance(got, expected) <= factor * row.tolerance


def _stack(values: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)


class Untrustworthy(Exception):
    """What a test raises where a gradient is NaN by request of `on_untrustworthy`."""


# The columns.


def check_grad(row: Row) -> None:
    batch = row.data(0)
    _check(_compiled_gradient(row)(OUTER, batch), _reference(row, OUTER, batch), row)


def check_jit(row: Row) -> None:
    batch = row.data(0)
    eager = jax.grad(_loss(row))(OUTER, batch)
    compiled = _compiled_gradient(row)(OUTER, batch)
    # Other roundings, amplified by one over the nudge.
    assert distance(compiled, eager) <= max(1e-12, 1e-2 * row.tolerance)


def check_jvp(row: Row) -> None:
    batch = row.data(0)
    loss = _loss(row)
    tangent = jax.jit(lambda x, t: jax.jvp(lambda x: loss(x, batch), (x,), (t,))[1])(
        OUTER, DIRECTION
    )
    _check(tangent, _reference(row, OUTER, batch) @ DIRECTION, row)


def check_hessian(row: Row) -> None:
    batch = row.data(0)
    hessian = jax.jit(jax.hessian(_loss(row)))(OUTER, batch)
    expected = _dense_derivative(row.inverse)(OUTER, batch)
    _check(hessian, expected, row, 100)


def check_jacrev(row: Row) -> None:
    batch = row.data(0)
    solve = _solve(row, on_untrustworthy="nan" if row.full else "ignore")
    jacobian = jax.jit(jax.jacrev(lambda x: solve(START, x, batch)[0]))(OUTER)
    inner = ridge_solution(OUTER, batch)
    hessian = jax.hessian(ridge)(inner, OUTER, batch)
    cross = jnp.diag(jnp.exp(OUTER) * inner)
    if bool(jnp.all(jnp.isnan(jacobian))):
        raise Untrustworthy("the certificate refused the gradient")
    _check(jacobian, -row.inverse(hessian) @ cross, row)


def check_vmap(row: Row) -> None:
    batches = _stack([row.data(seed) for seed in range(3)])
    outers = jnp.stack([OUTER, OUTER + 0.1, OUTER - 0.2])
    solve = _solve(row)
    solutions = jax.jit(jax.vmap(lambda x, b: solve(START, x, b)[0]))(outers, batches)
    expected = jax.vmap(ridge_solution)(outers, batches)
    assert distance(solutions, expected) <= 1e-8


def check_vmap_of_grad(row: Row) -> None:
    batches = _stack([row.data(seed) for seed in range(3)])
    outers = jnp.stack([OUTER, OUTER + 0.1, OUTER - 0.2])
    gradients = jax.jit(jax.vmap(jax.grad(_loss(row))))(outers, batches)
    expected = jax.vmap(lambda x, b: _reference(row, x, b))(outers, batches)
    _check(gradients, expected, row)


def check_closure(row: Row) -> None:
    batch = row.data(0)

    @jax.jit
    def gradient(shift: jax.Array) -> jax.Array:
        def loss(shift: jax.Array) -> jax.Array:
            def objective(w: Any, x: Any, batch: Any) -> jax.Array:
                return ridge(w, x + shift, batch)

            def function(w: Any, x: Any, batch: Any) -> jax.Array:
                return readout(w, x + shift, batch)

            solve = _solve(row, objective, function)
            inner, _ = solve(START, OUTER, batch)
            return function(inner, OUTER, batch)

        return jax.grad(loss)(shift)

    shift = 0.1 * DIRECTION
    _check(gradient(shift), _reference(row, OUTER + shift, batch), row)


class Pair(NamedTuple):
    """A pytree of two leaves."""

    first: Any
    second: Any


def check_trees(row: Row) -> None:
    def split(v: jax.Array) -> Any:
        return {"a": Pair(v[:1], {"c": v[1]}), "b": v[2:]}

    def join(tree: Any) -> jax.Array:
        first, second = tree["a"]
        return jnp.concatenate([first, second["c"][None], tree["b"]])

    def objective(w: Any, x: Any, batch: Any) -> jax.Array:
        return ridge(join(w), join(x), batch)

    def function(w: Any, x: Any, batch: Any) -> jax.Array:
        return readout(join(w), join(x), batch)

    solve = _solve(row, objective, function)
    batch = row.data(0)

    @jax.jit
    @jax.grad
    def gradient(x: Any) -> jax.Array:
        return function(solve(split(START), x, batch)[0], x, batch)

    got = gradient(split(OUTER))
    _check(got, split(_reference(row, OUTER, batch)), row)


class Model(NamedTuple):
    """A Flax model.

    Attributes:
        objective: inner, returns what the model changed, too.
        function: outer, as well.
        inner: parameters to start from.
        batch: data and keys.
        changed: what both return besides the loss.
    """

    objective: Any
    function: Any
    inner: Any
    batch: Any
    changed: Any


@functools.cache
def _dense_of_model(build: Any, data_of: Any, inverse: Any) -> Any:
    model = build(data_of)

    @jax.jit
    def reference(inner: Any, outer: Any, batch: Any) -> Any:
        return dense_hypergradient(
            lambda *args: model.objective(*args)[0],
            lambda *args: model.function(*args)[0],
            inner,
            outer,
            batch,
            inverse,
        )

    return reference


def _check_model(row: Row, build: Callable[[Any], Model]) -> None:
    """Reference with dense matrices at a solution found by descent."""
    model = build(row.data)
    problem = bilevel.Problem(
        model.objective, model.function, inner_has_aux=True, outer_has_aux=True
    )
    evaluate = bilevel.value_and_hypergradient(
        problem, row.solver, row.rule(row.nudge), certify=False
    )
    batches = bilevel.Batches(model.batch, model.batch)
    out = jax.jit(evaluate)(model.inner, OUTER, batches)
    reference = _dense_of_model(build, row.data, row.inverse)
    expected = reference(out.inner, OUTER, model.batch)
    assert float(out.info.inner.relative_residual) <= 1e-9
    _check(out.gradient, expected, row)
    for got in (out.info.inner.aux, out.aux):
        changed = jax.tree.leaves(model.changed)
        assert distance(jax.tree.leaves(got), changed) <= 1e-12


def _model_loss(outputs: jax.Array, kernel: jax.Array, x: Any, data: Data) -> Any:
    residual = outputs[:, 0] - data.targets
    return (jnp.mean(residual**2) + jnp.sum(jnp.exp(x) * kernel[:, 0] ** 2)) / 2


@functools.cache
def linen_model(data_of: Callable[[int], Data]) -> Model:
    """Batch norm, dropout and a dense layer."""
    network = nn.Sequential(
        [
            nn.BatchNorm(
                False, use_bias=False, use_scale=False, param_dtype=jnp.float64
            ),
            nn.Dropout(0.2, deterministic=False),
            nn.Dense(1, use_bias=False, param_dtype=jnp.float64),
        ]
    )
    data = data_of(0)
    batch = {"data": data, "key": jax.random.key(1)}
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = network.init(keys, data.features)

    def apply(w: Any, batch: Any) -> Any:
        return network.apply(
            variables | {"params": w},
            batch["data"].features,
            rngs={"dropout": batch["key"]},
            mutable=["batch_stats"],
        )

    def objective(w: Any, x: Any, batch: Any) -> Any:
        outputs, changed = apply(w, batch)
        kernel = w["layers_2"]["kernel"]
        return _model_loss(outputs, kernel, x, batch["data"]), changed

    def function(w: Any, x: Any, batch: Any) -> Any:
        outputs, changed = apply(w, batch)
        return jnp.mean(jnp.tanh(outputs)) + 0.1 * jnp.sum(x**2), changed

    changed = apply(variables["params"], batch)[1]
    return Model(objective, function, variables["params"], batch, changed)


class Network(nnx.Module):
    """Dropout, batch norm and a linear layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(0.2)
        self.norm = nnx.BatchNorm(
            3, use_bias=False, use_scale=False, param_dtype=jnp.float64, rngs=rngs
        )
        self.linear = nnx.Linear(
            3, 1, use_bias=False, param_dtype=jnp.float64, rngs=rngs
        )

    def __call__(self, features: jax.Array, key: jax.Array) -> jax.Array:
        hidden = self.norm(features)
        return self.linear(self.dropout(hidden, rngs=nnx.Rngs(dropout=key)))


@functools.cache
def nnx_model(data_of: Callable[[int], Data]) -> Model:
    """The same in nnx."""
    data = data_of(0)
    network = Network(nnx.Rngs(0))
    graph, params, rest = nnx.split(network, nnx.Param, ...)
    # nnx keeps statistics in float32, whatever `param_dtype`.
    rest = jax.tree.map(lambda x: x.astype(jnp.float64), rest)
    batch = {"data": data, "key": jax.random.key(3), "rest": rest}

    def apply(w: Any, batch: Any) -> Any:
        model = nnx.merge(graph, w, batch["rest"], copy=True)
        outputs = model(batch["data"].features, batch["key"])
        return model, outputs, nnx.split(model, nnx.Param, ...)[2]

    def objective(w: Any, x: Any, batch: Any) -> Any:
        model, outputs, changed = apply(w, batch)
        kernel = model.linear.kernel[...]
        return _model_loss(outputs, kernel, x, batch["data"]), changed

    def function(w: Any, x: Any, batch: Any) -> Any:
        _, outputs, changed = apply(w, batch)
        return jnp.mean(jnp.tanh(outputs)) + 0.1 * jnp.sum(x**2), changed

    return Model(objective, function, params, batch, apply(params, batch)[2])


def check_linen(row: Row) -> None:
    _check_model(row, linen_model)


def check_nnx(row: Row) -> None:
    _check_model(row, nnx_model)


def check_bfloat16(row: Row) -> None:
    coarse = row._replace(nudge=0.1)
    solve = _solve(coarse)
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (START, OUTER, row.data(0)))

    @jax.jit
    def gradient(start: Any, x: Any, batch: Any) -> Any:
        return jax.grad(lambda x: readout(solve(start, x, batch)[0], x, batch))(x)

    got = gradient(*half)
    assert got.dtype == jnp.bfloat16
    # 8 bits; a one-sided nudge this large is 7 % off by itself.
    assert distance(got, _reference(row, OUTER, row.data(0))) <= 0.1


def check_scan(row: Row) -> None:
    batches = bilevel.Batches(row.data(0), None)
    evaluate = bilevel.value_and_hypergradient(
        bilevel.Problem(ridge, readout), row.solver, row.rule(row.nudge), certify=False
    )

    @jax.jit
    def train(carry: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            inner, outer, memory = carry
            out = evaluate(inner, outer, batches, memory)
            return (out.inner, outer - 0.5 * out.gradient, out.warm_start), out.value

        return jax.lax.scan(step, carry, None, length=3)

    memory = WarmStart(row.rule(row.nudge).init(START))
    (_, outer, _), values = train((START, OUTER, memory))
    x, expected = OUTER, []
    for _ in range(3):
        expected.append(readout(ridge_solution(x, batches.inner), x, None))
        x = x - 0.5 * _reference(row, x, batches.inner)
    _check(outer, x, row)
    _check(values, jnp.stack(expected), row)


def check_second_derivative(row: Row) -> None:
    evaluate = bilevel.value_and_hypergradient(
        bilevel.Problem(ridge, readout), row.solver, row.rule(row.nudge), certify=False
    )
    batch = row.data(0)
    batches = bilevel.Batches(batch, None)
    jacobian = jax.jit(jax.jacfwd(lambda x: evaluate(START, x, batches).gradient))(
        OUTER
    )
    expected = _dense_derivative(row.inverse)(OUTER, batch)
    _check(jacobian, expected, row, 100)


def check_initial_point(row: Row) -> None:
    short = row.solver._replace(max_steps=5)
    if row.name == "truncated":
        short = row.solver
    solve = _solve(row._replace(solver=short))
    batch = row.data(0)

    @jax.jit
    @jax.grad
    def gradient(start: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(solve(start, OUTER, batch)[0]))

    def program(w: jax.Array) -> jax.Array:
        for _ in range(5):
            w = w - STEP_SIZE * jax.grad(ridge)(w, OUTER, batch)
        return jnp.sum(jnp.sin(w))

    _check(gradient(DIRECTION), jax.grad(program)(DIRECTION), row)


COLUMNS = {
    "jit": check_jit,
    "grad": check_grad,
    "jvp": check_jvp,
    "hessian": check_hessian,
    "jacrev": check_jacrev,
    "jacfwd of the hypergradient": check_second_derivative,
    "vmap over problems": check_vmap,
    "vmap of grad": check_vmap_of_grad,
    "closures over traced values": check_closure,
    "dict, NamedTuple": check_trees,
    "linen: dropout, batch norm": check_linen,
    "nnx: dropout, batch norm": check_nnx,
    "bfloat16": check_bfloat16,
    "scan": check_scan,
    "gradient for the start": check_initial_point,
}


class Refusal(NamedTuple):
    """What a cell raises instead of working."""

    error: type[Exception]
    message: str
    mark: str


NO_FORWARD_MODE = Refusal(TypeError, "custom_vjp", "TypeError")
NO_START = Refusal(ValueError, r"MAML.*use hypergradients.unrolled\(\)", "ValueError")
ANOTHER_COTANGENT = Refusal(Untrustworthy, "refused", "flagged")


def refusal(row: str, column: str) -> Refusal | None:
    """The error that a cell is documented to raise; None if it works."""
    if row == "unrolled, mixed mode":
        forward = ("jvp", "hessian", "jacfwd of the hypergradient")
        return NO_FORWARD_MODE if column in forward else None
    if column == "jvp":
        both_modes = row.startswith(("implicit", "truncated", "unrolled"))
        return NO_FORWARD_MODE if "forward" in row or not both_modes else None
    if column == "gradient for the start":
        is_program = row.startswith("unrolled") and "forward" not in row
        return None if is_program else NO_START
    if (row, column) == ("nudged, in full", "jacrev"):
        return ANOTHER_COTANGENT
    return None


CELLS = [
    pytest.param(
        row,
        column,
        id=f"{row.name}-{column}",
        marks=pytest.mark.thorough if row.name in VARIANTS else [],
    )
    for row in (*ROWS, *EXTENSIONS)
    for column in COLUMNS
]


@pytest.mark.parametrize(("row", "column"), CELLS)
@pytest.mark.thinned(4)  # every row and every column among them
def test_cell(row: Row, column: str):
    expected = refusal(row.name, column)
    if expected is None:
        COLUMNS[column](row)
    else:
        with pytest.raises(expected.error, match=expected.message):
            COLUMNS[column](row)


def test_every_rule_has_a_row():
    names = {row.rule(row.nudge or 0.1).name for row in ROWS}
    factories = {name for name in hypergradients.__all__ if name.islower()}
    factories.remove("stencils")  # the nudges that a rule takes
    assert names == factories


# The guide's copy.

BEGIN, END = "<!-- rules-table -->", "<!-- /rules-table -->"
NOTES = """\
`TypeError`: the rule defines a pull-back only, and JAX refuses forward mode; the
Hessian, forward over reverse, works all the same, but not in mixed mode. `ValueError`:
the rule gives the derivative of the argmin, which does not depend on the start; use
`unrolled()` for MAML, with `argmin` or with `Problem(initial=...)`. *flagged*: a full
nudge knows multiples of dF/dw only; other cotangents are untrustworthy: a warning, or
NaN, as `on_untrustworthy` says."""


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| rule | " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * (len(COLUMNS) + 1),
    ]
    for row in ROWS:
        cells = [refusal(row.name, column) for column in COLUMNS]
        marks = [cell.mark if cell else "✓" for cell in cells]
        lines.append(f"| {row.name} | " + " | ".join(marks) + " |")
    return "\n".join([*lines, "", NOTES])


def test_guide_holds_this_table():
    page = Path(__file__).parents[2] / "examples" / "guide" / "rules.md"
    text = page.read_text(encoding="utf-8")
    copy = text.split(BEGIN, 1)[1].split(END, 1)[0]
    # Otherwise: python tests/hypergradients/test_contracts.py, and paste.
    assert copy.strip() == table()


if __name__ == "__main__":
    print(table())  # noqa: T201
