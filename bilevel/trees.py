"""Arithmetic on pytrees, leaf by leaf, so that sharded leaves stay where they are.

Inner products are `sum(a * b)` per leaf: `jnp.vdot` and `ravel_pytree` flatten a leaf
and thereby gather it from every device.  Sums are accumulated in at least float32, so
that norms of bfloat16 trees are usable as stopping criteria.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Tree: TypeAlias = Any
"""A pytree of arrays."""


def real_dtype(tree: Tree) -> jnp.dtype:
    """The dtype in which scalars of `tree` are kept: its widest float, >= float32."""
    return jnp.result_type(jnp.float32, *(x.dtype for x in jax.tree.leaves(tree)))


def dot(a: Tree, b: Tree) -> jax.Array:
    """The inner product `sum_i a_i b_i`, a scalar of dtype `real_dtype(a)`."""
    dtype = real_dtype(a)
    products = jax.tree.map(lambda x, y: jnp.sum(x * y, dtype=dtype), a, b)
    return _sum(jax.tree.leaves(products), dtype)


def _sum(terms: list[jax.Array], dtype: jnp.dtype) -> jax.Array:
    """Their sum, without an operation that one leaf does not need."""
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros((), dtype)


def norm(a: Tree) -> jax.Array:
    """The Euclidean norm of all leaves together, without overflow of the squares."""
    largest = max_abs(a)
    dtype = largest.dtype
    limits = jnp.finfo(dtype)
    # Neither it nor its reciprocal is 0 or inf; a NaN stays one.
    scale = jnp.clip(largest, limits.tiny, 2.0 ** (limits.maxexp - 3))
    squares = jax.tree.map(lambda x: jnp.sum(jnp.square(x.astype(dtype) / scale)), a)
    return scale * jnp.sqrt(_sum(jax.tree.leaves(squares), dtype))


def max_abs(a: Tree) -> jax.Array:
    """The largest absolute value of all leaves (0 for a tree without elements)."""
    dtype = real_dtype(a)
    tops = [jnp.max(jnp.abs(x)).astype(dtype) for x in jax.tree.leaves(a) if x.size]
    return functools.reduce(jnp.maximum, tops) if tops else jnp.zeros((), dtype)


def add(a: Tree, b: Tree) -> Tree:
    """`a + b`."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """`a - b`."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(factor: jax.Array | float, a: Tree) -> Tree:
    """`factor * a` in the dtypes of `a`."""
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), a)


def over(a: Tree, size: jax.Array) -> Tree:
    """`a / size` for a scalar size >= 0, and `a` itself where size is 0.

    Also where 1 / size is not a normal number, by which compilers multiply instead.
    """
    half = 2.0 ** (jnp.finfo(size.dtype).maxexp // 2)
    shrink = jnp.where(size > half, 1 / half, jnp.where(size < 1 / half, half, 1))
    inverse = 1 / jnp.where(size > 0, shrink * size, 1)
    shrink = jnp.where(size > 0, shrink, 1)
    return jax.tree.map(lambda x: (shrink * x * inverse).astype(x.dtype), a)


def axpy(factor: jax.Array | float, a: Tree, b: Tree) -> Tree:
    """`factor * a + b` in the dtypes of `b`."""
    return jax.tree.map(lambda x, y: (factor * x + y).astype(y.dtype), a, b)


def where(condition: jax.Array, a: Tree, b: Tree) -> Tree:
    """`a` if the scalar `condition` holds, otherwise `b`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def epsilon(a: Tree) -> float:
    """The rounding unit of the narrowest leaf of `a`."""
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(a))


def zeros_like(a: Tree) -> Tree:
    """Zeros of the shapes and dtypes of `a`."""
    return jax.tree.map(jnp.zeros_like, a)


def random_signs(key: jax.Array, a: Tree) -> Tree:
    """A tree like `a` of random +1 and -1."""
    return _drawn(jax.random.rademacher, key, a)


def random_normal(key: jax.Array, a: Tree) -> Tree:
    """A tree like `a` of independent standard normal numbers."""
    return _drawn(jax.random.normal, key, a)


def _drawn(draw: Callable[..., jax.Array], key: jax.Array, a: Tree) -> Tree:
    leaves, treedef = jax.tree.flatten(a)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [draw(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


def tied(a: Tree, *sources: Tree) -> Tree:
    """`a`, every leaf of which formally depends on every float leaf of `sources`.

    The dependence is linear and exactly zero, also where a source is inf or NaN, and a
    compiler removes it.  `lax.custom_linear_solve` cannot be transposed unless every
    leaf of its right-hand side carries a tangent: this gives one to leaves that what is
    differentiated does not touch (a bias that x does not penalise).
    """
    floats = [x for x in jax.tree.leaves(sources) if is_float(x)]
    total = sum((jnp.sum(x).astype(real_dtype(a)) for x in floats), 0.0)

    def tie(leaf: jax.Array) -> jax.Array:
        never = jnp.zeros(leaf.shape, bool)
        return jnp.where(never, jnp.asarray(total, leaf.dtype), leaf)

    return jax.tree.map(tie, a) if floats else a


def is_float(x: Any) -> bool:
    """Whether a leaf is of a floating-point dtype, hence differentiable."""
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def has_tangent(x: Any) -> bool:
    """Whether JAX differentiates a leaf: floating-point, or complex."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def split_floats(tree: Tree, wanted: Callable[[Any], bool] = is_float) -> Any:
    """Separates the floating-point leaves of `tree` from all others.

    Args:
        tree: with leaves of any dtype (labels, PRNG keys, masks).
        wanted: other leaves may be asked for, all that have a tangent, say.

    Returns:
        `(floats, merge)`: the list of those leaves, and a function
        `merge(floats) -> tree` that puts such a list back beside the others.
    """
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if wanted(x)]

    def merge(floats: list[Any]) -> Tree:
        merged = list(leaves)
        for i, x in zip(places, floats, strict=True):
            merged[i] = x
        return jax.tree.unflatten(treedef, merged)

    return [leaves[i] for i in places], merge


def require_float(tree: Tree, name: str) -> None:
    """Raises `ValueError` unless every leaf of `tree` is a floating-point array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, float):
            got = type(leaf).__name__
        elif is_float(leaf):
            continue
        else:
            got = str(jnp.result_type(leaf))
        raise ValueError(
            f"{name}{jax.tree_util.keystr(path)} must be a floating-point array, since "
            f"it is optimised by gradients; got {got}. Convert it with "
            "jnp.asarray(value, float), or move it into the batch if it is data."
        )


def require_like(got: Tree, expected: Tree, name: str, like: str) -> None:
    """Raises `ValueError` unless `got` has the structure and shapes of `expected`."""
    if jax.tree.structure(got) != jax.tree.structure(expected):
        raise ValueError(
            f"{name} must have the tree structure of {like}:\n"
            f"  expected {jax.tree.structure(expected)}\n"
            f"  got      {jax.tree.structure(got)}"
        )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    )
    for (path, x), y in pairs:
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have the shape of {like}: "
                f"expected {jnp.shape(y)}, got {jnp.shape(x)}."
            )


def as_arrays(tree: Tree) -> Tree:
    """Turns floats and NumPy arrays into jax arrays, and weak types into strong ones.

    A weakly typed state would come back strongly typed from its first update, and be
    compiled for twice.
    """
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), tree)
