"""The pairs of the last solve, as a quasi-Newton matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.derivatives import Oracle
from bilevel.inner_problem import Pairs, Parameters, Preconditioner
from bilevel.preconditioners import stacks
from bilevel.trees import Tree


class LimitedMemoryState(NamedTuple):
    """Pairs (p, H p) of the last solve.

    Attributes:
        pairs: `[m, *shape]` a leaf, each with p'Hp = 1; zeros before the first solve.
        core: `[m, m]`, the inverse of the matrix of the p_i'H p_j.
        scale: `[]`, what the inverse of H is taken for beside them.
    """

    pairs: Pairs
    core: jax.Array
    scale: jax.Array


# Of directions that rounding made dependent, the least share that counts.
_KEPT = 1e-2


def limited_memory(num_pairs: int = 20) -> Preconditioner:
    """The inverse Hessian that the last directions of CG imply.

    With directions P, products Y = H P and C = (P'Y)^-1,

        P C P' + scale (I - P C Y') (I - Y C P')

    is H^-1 on the products: the BFGS update with all pairs at once, as CG would have
    them conjugate, and needs no order of them.

    For outer loops: the adjoint solve of one step leaves its directions p and products
    H p, from which the next solves start to know H.  The first solve runs without.  In
    `argmin`, which carries nothing from call to call, it has no effect.

    Args:
        num_pairs: m, kept of every adjoint solve, its last ones.

    Returns:
        A `Preconditioner`; its state is 2 m trees like w.  Cost: no product with H;
        4 m inner products and sums an application.

    Raises:
        ValueError: an argument is out of range; (when used) the linear solver of the
            rule records no pairs (`cg` does).

    Source: Morales and Nocedal 2000, "Automatic preconditioning by limited memory
    quasi-Newton updating"; Schnabel 1983 for updates with several pairs at once.

    Example:
        >>> preconditioner = limited_memory(10)
    """
    num_pairs = checks.count("limited_memory: num_pairs", num_pairs, 1)

    def init(inner: Tree) -> LimitedMemoryState:
        empty = stacks.zeros(num_pairs, inner)
        dtype = trees.real_dtype(inner)
        core = jnp.zeros((num_pairs, num_pairs), dtype)
        return LimitedMemoryState(Pairs(empty, empty), core, jnp.ones((), dtype))

    return Preconditioner(
        name="limited_memory",
        init=init,
        refresh=_refresh,
        apply=_apply,
        observe=_observe,
        num_pairs=num_pairs,
    )


def _refresh(
    oracle: Oracle, inner: Tree, parameters: Parameters, state: LimitedMemoryState
) -> LimitedMemoryState:
    del oracle, inner, parameters
    return state


def _observe(state: LimitedMemoryState, pairs: Pairs) -> LimitedMemoryState:
    """The new pairs; the old ones, where none of the new has positive curvature."""
    curvatures = jax.vmap(trees.dot)(pairs.directions, pairs.products)
    is_used = (curvatures > 0) & jnp.isfinite(curvatures)
    size = jnp.where(is_used, 1 / jnp.sqrt(jnp.where(is_used, curvatures, 1)), 0)
    pairs = jax.tree.map(lambda x: _rows(size, x), pairs)
    # The identity, but for rounding: the directions of CG are conjugate.
    gram = stacks.gram(pairs.directions, pairs.products)
    values, vectors = jnp.linalg.eigh((gram + gram.T) / 2)
    is_kept = values > _KEPT
    inverse = jnp.where(is_kept, 1 / jnp.where(is_kept, values, 1), 0)
    core = (vectors * inverse[None]) @ vectors.T
    squares = stacks.gram(pairs.products, pairs.products)
    count, total = jnp.sum(is_used), jnp.trace(squares)
    scale = count / jnp.where(total > 0, total, 1)
    new = LimitedMemoryState(pairs, core, scale.astype(state.scale.dtype))
    return trees.where(jnp.any(is_used) & jnp.isfinite(total), new, state)


def _rows(factors: jax.Array, x: jax.Array) -> jax.Array:
    shape = (-1, *(1,) * (x.ndim - 1))
    return (jnp.where(factors > 0, factors, 0).reshape(shape) * x).astype(x.dtype)


def _apply(state: LimitedMemoryState, r: Tree) -> Tree:
    """P C P' r + scale (I - P C Y') (I - Y C P') r, C the inverse of P'Y."""
    directions, products = state.pairs
    along = state.core @ stacks.along(directions, r)
    rest = trees.sub(r, stacks.combined(along, products))
    back = state.core @ stacks.along(products, rest)
    rest = trees.sub(rest, stacks.combined(back, directions))
    return trees.axpy(state.scale, rest, stacks.combined(along, directions))
