"""Small problems with known answers, shared by the tests of the core."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree


class Data(NamedTuple):
    """A linear regression: features `[n, d]` and targets `[n]`."""

    features: jax.Array
    targets: jax.Array


def ridge_data(seed: int = 0, num_rows: int = 8, dim: int = 3) -> Data:
    """Features with X'X/n near the identity, so that few steps solve the problem."""
    keys = jax.random.split(jax.random.key(seed), 3)
    basis = jnp.linalg.qr(jax.random.normal(keys[0], (num_rows, dim)))[0]
    noise = 0.3 * jax.random.normal(keys[1], (num_rows, dim))
    return Data(
        features=basis * num_rows**0.5 + noise,
        targets=jax.random.normal(keys[2], (num_rows,)),
    )


def separable_data(seed: int = 0, num_rows: int = 12, dim: int = 3) -> Data:
    """One feature per row, twice with each sign: the ridge Hessian is diagonal.

    It stays so if rows are dropped or features are normalised.
    """
    del seed
    sizes = jnp.linspace(1.0, 2.0, dim)
    rows = jnp.diag(sizes)
    blocks = jnp.concatenate([rows, -rows] * (num_rows // (2 * dim)))
    return Data(blocks, jnp.cos(jnp.arange(num_rows)) * 2)


def ridge(inner: Any, outer: Any, batch: Data) -> jax.Array:
    """|X w - y|^2 / (2 n) + sum_j exp(x_j) w_j^2 / 2: one penalty per feature."""
    residual = batch.features @ inner - batch.targets
    return (jnp.mean(residual**2) + jnp.sum(jnp.exp(outer) * inner**2)) / 2


def ridge_solution(outer: jax.Array, batch: Data) -> jax.Array:
    """The minimiser of `ridge`, in closed form."""
    x, y = batch
    hessian = x.T @ x / len(y) + jnp.diag(jnp.exp(outer))
    return jnp.linalg.solve(hessian, x.T @ y / len(y))


def readout(inner: Any, outer: Any, batch: Any) -> jax.Array:
    """An outer objective that is not quadratic and depends on both variables."""
    del batch
    return jnp.sum(jnp.log(jnp.cosh(inner - 0.3))) + 0.1 * jnp.sum(outer * inner)


def dense_hypergradient(
    inner_objective: Callable[[Any, Any, Any], Any],
    outer_objective: Callable[[Any, Any, Any], Any],
    inner: Any,
    outer: Any,
    batch: Any,
    inverse: Callable[[jax.Array], jax.Array] = jnp.linalg.inv,
) -> Any:
    """dF/dx - J' inverse(H) dF/dw at a given inner variable, with dense matrices."""
    flat, unravel = ravel_pytree(inner)

    def value(w: jax.Array, x: Any) -> jax.Array:
        return inner_objective(unravel(w), x, batch)

    direct = jax.grad(outer_objective, argnums=1)(inner, outer, batch)
    slope = ravel_pytree(jax.grad(outer_objective)(inner, outer, batch))[0]
    adjoint = inverse(jax.hessian(value)(flat, outer)) @ slope
    through = jax.grad(lambda x: jnp.vdot(jax.grad(value)(flat, x), adjoint))(outer)
    return jax.tree.map(jnp.subtract, direct, through)


def distance(got: Any, expected: Any) -> float:
    """|got - expected| / |expected| over all leaves; the trees must be the same."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    assert all(a.shape == b.shape for a, b in pairs)
    a, b = (
        jnp.concatenate([jnp.ravel(x).astype(jnp.float64) for x in jax.tree.leaves(t)])
        for t in (got, expected)
    )
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def leaf_errors(got: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """|got - expected| / |expected| of every leaf by itself; 0 of one without size."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    errors = {}
    for name, right in expected.items():
        size = float(jnp.linalg.norm(right))
        difference = float(jnp.linalg.norm(got[name] - right))
        errors[name] = difference / size if jnp.size(right) else 0.0
    return errors


# A problem whose leaves differ: in what they depend on, who reads them, their sizes and
# shapes.

UNEVEN_LARGE = 1e6
UNEVEN_INNER = {
    "kernel": jnp.zeros(3),
    "bias": jnp.zeros(()),  # its gradient contains no x
    "large": jnp.zeros(1),  # a million times the others
    "unread": jnp.zeros(2),  # F does not read it
    "empty": jnp.zeros((0, 2)),
}
UNEVEN_OUTER = {"decay": jnp.array([-0.8, 0.2, -0.3]), "level": jnp.array(0.4)}
UNEVEN_OTHER_OUTER = {"decay": jnp.array([0.1, -0.5, 0.3]), "level": jnp.array(-0.7)}


def uneven(inner: Any, outer: Any, batch: tuple[jax.Array, Data]) -> jax.Array:
    """A ridge regression with a free bias, and more; the batch is (constant, data)."""
    constant, data = batch
    shifted = data._replace(targets=data.targets - inner["bias"])
    goal = UNEVEN_LARGE * jnp.tanh(outer["level"])
    large = jnp.sum((inner["large"] - goal) ** 2)
    unread = jnp.sum((inner["unread"] - outer["level"]) ** 2)
    plain = ridge(inner["kernel"], outer["decay"], shifted)
    return constant + plain + jnp.sum(inner["empty"] ** 2) + (large + unread) / 2


def uneven_readout(inner: Any, outer: Any, batch: Any) -> jax.Array:
    """Of all but one leaf; the large one has a derivative of 1e-3."""
    del batch
    large = 1e3 * jnp.sum(jnp.log(jnp.cosh(inner["large"] / UNEVEN_LARGE - 1)))
    small = readout(inner["kernel"], outer["decay"], None) + jnp.sin(inner["bias"])
    return small + large


def uneven_solution(outer: Any, data: Data) -> dict[str, jax.Array]:
    """The minimiser of `uneven`, in closed form."""
    count = len(data.targets)
    features = jnp.column_stack([data.features, jnp.ones(count)])
    penalty = jnp.diag(jnp.append(jnp.exp(outer["decay"]), 0.0))
    hessian = features.T @ features / count + penalty
    linear = jnp.linalg.solve(hessian, features.T @ data.targets / count)
    return UNEVEN_INNER | {
        "kernel": linear[:3],
        "bias": linear[3],
        "large": UNEVEN_LARGE * jnp.tanh(outer["level"])[None],
        "unread": jnp.full(2, outer["level"]),
    }
