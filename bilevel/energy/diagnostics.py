"""What the field plots of a learning rule: angles, Lipschitz constants."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.energy.affine import is_affine
from bilevel.energy.feedforward import Block, Feedforward
from bilevel.energy.networks.base import State
from bilevel.iteration import iterate
from bilevel.trees import Tree


def cosines(grads: Sequence[Tree], reference: Sequence[Tree]) -> jax.Array:
    """The cosine between two gradients, layer by layer.

    Args:
        grads: a tree for each layer; kernel and bias count as one vector.
        reference: the same, of back-propagation.

    Returns:
        `[L]`, clipped to [-1, 1]; 0 where one of the two is (nearly) zero.

    Raises:
        ValueError: different numbers of layers.

    Example:
        >>> ones = [jnp.ones(2)]
        >>> [round(float(x), 5) for x in cosines(ones, [jnp.array([1.0, 0.0])])]
        [0.70711]
    """
    if len(grads) != len(reference):
        raise ValueError(
            f"cosines: expected gradients of {len(reference)} layers, got {len(grads)}."
        )

    def one(a: Tree, b: Tree) -> jax.Array:
        size = jnp.maximum(trees.norm(a) * trees.norm(b), 1e-30)
        return jnp.clip(trees.dot(a, b) / size, -1, 1)

    return jnp.stack([one(a, b) for a, b in zip(grads, reference, strict=True)])


def angles(grads: Sequence[Tree], reference: Sequence[Tree]) -> jax.Array:
    """The angle between two gradients in degrees, layer by layer; see `cosines`.

    In float32 the arccosine cannot tell angles below 0.02 degrees from zero: compare
    small ones by their relative error.

    Example:
        >>> float(angles([jnp.ones(1)], [-jnp.ones(1)])[0])
        180.0
    """
    return jnp.rad2deg(jnp.arccos(cosines(grads, reference)))


def lipschitz(
    chain: Feedforward,
    params: Tree,
    inputs: jax.Array,
    states: State | None = None,
    *,
    num_steps: int = 20,
) -> jax.Array:
    """The largest singular value of each block's linear part, by power iteration.

    A max-pool's part is taken where the first example's forward pass has its maxima.

    Args:
        chain: the blocks.
        params: of the chain.
        inputs: `[B, ...]`; the first example is used, for the shapes.
        states: of the forward pass, if they are there already.
        num_steps: of power iteration on W^T W.

    Returns:
        `[L]`, each a lower bound that converges from below.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(2, use_bias=False)])
        >>> params = [{"kernel": jnp.diag(jnp.array([3.0, 1.0]))}]
        >>> round(float(lipschitz(chain, params, jnp.ones((1, 2)))[0]), 4)
        3.0
    """
    if states is None:
        found = chain.pre_activations(params, inputs[:1])
        states = [chain.activation.apply(a) for a in found]
    below = [state[:1] for state in (inputs, *states[:-1])]
    parts = zip(chain.blocks, params, below, strict=True)
    return jnp.stack(
        [block_norm(block, own, at, num_steps=num_steps) for block, own, at in parts]
    )


def block_norm(
    block: Block, params: Tree, state: jax.Array, *, num_steps: int = 20
) -> jax.Array:
    """The largest singular value of a block's linear part, at any of the examples.

    It is the same for all of them, unless the block pools by maxima.

    Args:
        block: affine in its state.
        params: of the block.
        state: `[B, ...]` below it; all examples count only where maxima are taken.
        num_steps: of power iteration on W^T W, from a normal vector that is fixed.

    Returns:
        `[]`, a lower bound.

    Example:
        >>> block = lambda params, s: s @ params
        >>> round(float(block_norm(block, 2 * jnp.eye(3), jnp.ones((1, 3)))), 5)
        2.0
    """
    if is_affine(block, params, state):
        state = state[:1]
    _, push = jax.linearize(lambda s: block(params, s), state)
    pull = jax.linear_transpose(push, state)

    def unit(v: jax.Array) -> jax.Array:
        size = trees.norm(v).astype(v.dtype)
        return v / jnp.where(size > 0, size, 1)

    start = unit(jax.random.normal(jax.random.key(0), state.shape, state.dtype))
    v = iterate(lambda v: unit(pull(push(v))[0]), start, num_steps=num_steps)
    return trees.norm(push(v))
