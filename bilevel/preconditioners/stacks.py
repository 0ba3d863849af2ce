"""Stacks of trees: every leaf has a first axis, over the members."""

import functools

import jax
import jax.numpy as jnp

from bilevel.trees import Tree


def zeros(num: int, like: Tree) -> Tree:
    """A stack of `num` trees like `like`."""
    return jax.tree.map(lambda x: jnp.zeros((num, *x.shape), x.dtype), like)


def gram(a: Tree, b: Tree) -> jax.Array:
    """`[m, n]`, the inner products of members of two stacks, in float32 at least."""

    def of_leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        axes = tuple(range(1, x.ndim))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.tensordot(x, y, axes=(axes, axes), preferred_element_type=wide)

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(of_leaf, a, b)))


def along(stack: Tree, tree: Tree) -> jax.Array:
    """`[m]`, the inner products of the members with a tree."""
    return gram(stack, jax.tree.map(lambda x: x[None], tree))[:, 0]


def combined(weights: jax.Array, stack: Tree) -> Tree:
    """The weighted sum of the members; of a matrix `[k, m]` a stack of k sums."""
    return jax.tree.map(
        lambda x: jnp.tensordot(weights, x, axes=1).astype(x.dtype), stack
    )
