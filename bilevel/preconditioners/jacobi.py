"""The diagonal of the Hessian."""

from functools import partial

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.derivatives import Oracle, hvp
from bilevel.inner_problem import Parameters, Preconditioner
from bilevel.iteration import iterate
from bilevel.trees import Tree

# Of the size of a row of H, the least that an entry of the diagonal is taken for.
_FLOOR = 0.1


def jacobi(*, num_probes: int = 8, every: int = 1) -> Preconditioner:
    """D^-1 r, D about the diagonal of H: the mean of z * (H z) over random signs z.

    Exact, with one probe, where H is diagonal.  Otherwise entry i has an error of about
    the size of the rest of row i over sqrt(num_probes), which is why |D_i| is taken to
    be at least a tenth of the size of the row.

    Args:
        num_probes: random vectors.
        every: it is refreshed at every so many solutions of an outer loop.

    Returns:
        A `Preconditioner`; its state is one tree like w.  Cost: `num_probes` + 2 g a
        refresh, and a product an application.

    Raises:
        ValueError: an argument is out of range.

    Source: Bekas, Kokiopoulou and Saad 2007, "An estimator for the diagonal of a
    matrix", equation 2.

    Example:
        >>> preconditioner = jacobi(num_probes=4, every=10)
    """
    num_probes = checks.count("jacobi: num_probes", num_probes, 1)
    return Preconditioner(
        name="jacobi",
        init=lambda inner: jax.tree.map(jnp.ones_like, inner),
        refresh=partial(_refresh, num_probes),
        apply=lambda state, r: jax.tree.map(jnp.multiply, state, r),
        every=checks.count("jacobi: every", every, 1),
    )


def _refresh(
    num_probes: int, oracle: Oracle, inner: Tree, parameters: Parameters, state: Tree
) -> Tree:
    """One over the diagonal."""
    del state
    product = hvp(oracle.gradient, inner, parameters)
    zero = trees.zeros_like(inner)

    def add(carry: tuple[jax.Array, Tree, Tree]) -> tuple[jax.Array, Tree, Tree]:
        probe, total, squares = carry
        z = trees.random_signs(jax.random.fold_in(jax.random.key(0), probe), inner)
        image = product(z)
        total = jax.tree.map(lambda t, a, b: t + a * b, total, z, image)
        squares = jax.tree.map(lambda s, b: s + b**2, squares, image)
        return probe + 1, total, squares

    start = jnp.zeros((), jnp.int32), zero, zero
    _, total, squares = iterate(add, start, num_steps=num_probes)

    def inverse(t: jax.Array, s: jax.Array) -> jax.Array:
        entry = jnp.abs(t) / num_probes
        row = jnp.sqrt(s / num_probes)
        entry = jnp.maximum(entry, _FLOOR * row)
        return jnp.where(entry > 0, 1 / jnp.where(entry > 0, entry, 1), 1)

    return jax.tree.map(inverse, total, squares)
