"""Systems that are not uniform: every linear solver meets them."""

import functools
from collections.abc import Callable
from typing import Any

import extensions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel.linear_solvers import cg, dense, neumann, normal_cg

ROWS = {
    "cg": cg(),
    "dense": dense(),
    "dense, LU": dense(symmetric=False),
    "neumann": neumann(0.4, 200),
    "normal_cg": normal_cg(),
    "extension: minres": extensions.minres(),
}
every_solver = pytest.mark.parametrize("name", ROWS)

BASIS = np.linalg.qr(np.sin(np.arange(16.0).reshape(4, 4) ** 1.3))[0]
VALUES = np.array([2.0, 1.5, 1.0, 0.5])
MATRIX = jnp.asarray(BASIS @ np.diag(VALUES) @ BASIS.T)
RHS = {"scalar": jnp.ones(()), "vector": jnp.arange(3.0), "empty": jnp.zeros((2, 0))}


def product(matrix: jax.Array) -> Callable[[Any], Any]:
    def matvec(u: Any) -> Any:
        flat, unravel = ravel_pytree(u)
        return unravel(matrix @ flat)

    return matvec


@functools.partial(jax.jit, static_argnums=0)
def solve(name: str, matrix: jax.Array, rhs: Any) -> Any:
    return ROWS[name].solve(product(matrix), rhs, None, None)


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


@every_solver
def test_scalar_and_empty_leaves(name: str):
    solution, info = solve(name, MATRIX, RHS)
    assert jax.tree.structure(solution) == jax.tree.structure(RHS)
    assert solution["empty"].shape == (2, 0)
    expected = np.linalg.solve(MATRIX, flat(RHS))
    np.testing.assert_allclose(flat(solution), expected, rtol=1e-6)
    assert bool(info.converged)


@every_solver
def test_singular_systems(name: str):
    """With a solution: that of minimum norm, or an error that says it is not.

    Without one: not converged.
    """
    singular = jnp.asarray(BASIS @ np.diag([2.0, 1.0, 1.0, 0.0]) @ BASIS.T)
    singular = (singular + singular.T) / 2
    unravel = ravel_pytree(RHS)[1]
    inside = singular @ jnp.arange(1.0, 5.0)
    solution, info = solve(name, singular, unravel(inside))
    expected = np.linalg.pinv(singular, rcond=1e-12) @ inside
    right = np.allclose(flat(solution), expected, rtol=1e-6)
    assert right or not bool(info.converged) or float(info.error) > 1e-3
    assert right or "dense" in name
    _, info = solve(name, singular, unravel(inside + BASIS[:, 3]))
    assert not bool(info.converged)


def test_cg_does_not_divide_by_the_curvature_of_rounding():
    singular = jnp.asarray(BASIS @ np.diag([2.0, 1.0, 1.0, 0.0]) @ BASIS.T)
    singular = (singular + singular.T) / 2
    solution, _ = cg().solve(
        lambda u: singular @ u, jnp.asarray(BASIS[:, 3]) + 1.0, None, None
    )
    assert float(jnp.abs(solution).max()) <= 1e6


@every_solver
@pytest.mark.thinned(2)
def test_constants_of_extreme_size_under_jit(name: str):
    """A compiler sees them, and may undo a scaling."""
    matrix = MATRIX.astype(jnp.float32)
    for size in (1e-30, 1e-19, 1e19, 1e30, 1e38):
        compiled = jax.jit(
            lambda s=size: ROWS[name].solve(
                lambda u: matrix @ u, jnp.full(4, s, jnp.float32), None, None
            )
        )
        solution, info = compiled()
        expected = np.linalg.solve(MATRIX, np.ones(4))
        near = np.allclose(np.asarray(solution, float) / size, expected, rtol=1e-3)
        assert near or not bool(info.converged)
        assert near or name != "cg"


@every_solver
def test_nan_in_one_leaf_or_in_the_matrix_is_never_converged(name: str):
    rhs = RHS | {"scalar": jnp.array(jnp.nan)}
    assert not bool(solve(name, MATRIX, rhs)[1].converged)
    assert not bool(solve(name, MATRIX.at[0, 0].set(jnp.nan), RHS)[1].converged)


@every_solver
@pytest.mark.thinned(99)
def test_forward_and_reverse_mode_agree(name: str):
    """With leaves of the right-hand side whose tangents are zero."""

    def loss(scale: jax.Array) -> jax.Array:
        rhs = jax.tree.map(lambda leaf: leaf + 0 * scale, RHS)
        rhs = rhs | {"vector": scale * RHS["vector"]}
        solution, _ = jax.lax.custom_linear_solve(
            product(MATRIX),
            rhs,
            lambda mv, b: ROWS[name].solve(mv, b, None, None),
            symmetric=True,
            has_aux=True,
        )
        return jnp.sum(solution["vector"]) + solution["scalar"]

    moved = RHS | {"scalar": jnp.zeros(())}
    expected = np.linalg.solve(MATRIX, flat(moved)).sum()
    np.testing.assert_allclose(jax.jit(jax.jacfwd(loss))(1.0), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacrev(loss))(1.0), expected, rtol=1e-6)
