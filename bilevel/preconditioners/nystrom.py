"""The randomised Nystrom approximation of the Hessian."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.derivatives import Oracle, hvp
from bilevel.inner_problem import Parameters, Preconditioner
from bilevel.iteration import iterate
from bilevel.preconditioners import stacks
from bilevel.trees import Tree


class NystromState(NamedTuple):
    """H is about U diag(values) U' on the space of U, and their last one beside it.

    Attributes:
        vectors: U, each leaf `[rank, *shape]`, orthonormal as rows of all leaves
            together; zeros before the first refresh.
        values: `[rank]`, the largest eigenvalues, descending.
        rest: `[]`, what H is taken for elsewhere.
    """

    vectors: Tree
    values: jax.Array
    rest: jax.Array


def nystrom(rank: int = 20, *, damping: float = 0.0, every: int = 1) -> Preconditioner:
    """(U (S + damping) U' + (s_rank + damping) (I - U U'))^-1 r.

    With Y = H Z for Gaussian Z, H is about Y (Z' Y)^-1 Y' = U S U': the leading
    eigenvectors, and in all other directions the smallest eigenvalue found.  It helps
    where a few eigenvalues are large and the others alike: CG takes as many steps as if
    the largest were s_rank.

    Args:
        rank: vectors, and products with H.
        damping: added to H; that of the linear solver, where it has one.
        every: it is refreshed at every so many solutions of an outer loop.

    Returns:
        A `Preconditioner`; its state is `rank` trees like w.  Cost: `rank` + 2 g a
        refresh; `rank` inner products and sums an application.  Where H is indefinite
        on the sketch it is left as the identity.

    Raises:
        ValueError: an argument is out of range.

    Source: Frangella, Tropp and Udell 2021, arXiv:2110.02820, algorithm 2.1 and
    equation 5.3.

    Example:
        >>> preconditioner = nystrom(10, every=5)
    """
    rank = checks.count("nystrom: rank", rank, 1)
    if not damping >= 0:
        raise ValueError(f"nystrom: damping must be >= 0, got {damping}.")

    def init(inner: Tree) -> NystromState:
        dtype = trees.real_dtype(inner)
        return NystromState(
            vectors=stacks.zeros(rank, inner),
            values=jnp.ones(rank, dtype),
            rest=jnp.ones((), dtype),
        )

    return Preconditioner(
        name="nystrom",
        init=init,
        refresh=partial(_refresh, rank, damping),
        apply=_apply,
        every=checks.count("nystrom: every", every, 1),
    )


def _orthonormal(stack: Tree) -> tuple[Tree, jax.Array]:
    """Orthonormal combinations of a stack of trees, and its singular values."""
    values, vectors = jnp.linalg.eigh(stacks.gram(stack, stack))
    values, vectors = values[::-1], vectors[:, ::-1]
    rounding = 10 * len(values) * jnp.finfo(values.dtype).eps * values[0]
    is_seen = values > rounding
    sizes = jnp.sqrt(jnp.where(is_seen, values, 0))
    scale = jnp.where(is_seen, 1 / jnp.where(is_seen, sizes, 1), 0)
    combined = stacks.combined((vectors * scale[None]).T, stack)
    return combined, sizes


def _refresh(
    rank: int,
    damping: float,
    oracle: Oracle,
    inner: Tree,
    parameters: Parameters,
    state: NystromState,
) -> NystromState:
    product = hvp(oracle.gradient, inner, parameters)
    sketch, _ = _orthonormal(trees.random_normal(jax.random.key(0), state.vectors))

    def one(place: jax.Array) -> tuple[jax.Array, Tree]:
        return place + 1, product(jax.tree.map(lambda x: x[place], sketch))

    first = jnp.zeros((), jnp.int32)
    _, image = iterate(one, first, num_steps=rank, history=True)
    # A shift keeps Z'Y definite where H is not by much.
    size = jnp.sqrt(jnp.trace(stacks.gram(image, image)))
    shift = jnp.finfo(size.dtype).eps * size
    image = trees.axpy(shift, sketch, image)
    core = stacks.gram(sketch, image)
    # There are no more orthonormal vectors than unknowns; the others are zero.
    is_missing = jnp.diagonal(stacks.gram(sketch, sketch)) < 0.5
    core = (core + core.T) / 2 + jnp.diag(jnp.where(is_missing, size, 0))
    factor = jnp.linalg.cholesky(core)
    is_definite = jnp.all(jnp.isfinite(factor))
    eye = jnp.eye(rank, dtype=factor.dtype)
    factor = jnp.where(is_definite, factor, eye)
    root = jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
    vectors, sizes = _orthonormal(stacks.combined(root, image))
    values = jnp.maximum(sizes**2 - shift, 0) + damping
    # The last of what was found.
    rest = jnp.min(jnp.where(values > damping, values, jnp.inf))
    is_usable = is_definite & jnp.isfinite(rest) & (rest > 0)
    new = NystromState(vectors, jnp.maximum(values, rest), rest)
    return trees.where(is_usable, new, _identity(state))


def _identity(state: NystromState) -> NystromState:
    ones = jnp.ones_like(state.values)
    return NystromState(trees.zeros_like(state.vectors), ones, ones[0])


def _apply(state: NystromState, r: Tree) -> Tree:
    change = stacks.along(state.vectors, r) * (1 / state.values - 1 / state.rest)
    return trees.axpy(1 / state.rest, r, stacks.combined(change, state.vectors))
