"""Batches as pure functions of a key and the number of the draw.

A sampler keeps no position in the data: the batch of any step can be computed from that
step alone, so that a run goes on from a checkpoint as if it had never stopped, and two
processes that hold the same key agree.  The data stay on the device.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import checks
from bilevel.iteration import iterate_until
from bilevel.problem import Sampler
from bilevel.trees import Tree

__all__ = ["Indexed", "epochs", "full", "uniform"]


class Indexed(NamedTuple):
    """A batch, and which examples it consists of: for methods that keep a table.

    Attributes:
        data: the examples, leaves `[B, ...]`.
        indices: `[B]` int32, their numbers.
    """

    data: Any
    indices: jax.Array


def full(data: Any) -> Sampler:
    """All the data, in every draw.

    Args:
        data: any pytree.

    Example:
        >>> full("all")(jax.random.key(0), 3)
        'all'
    """

    def sample(key: jax.Array, draw: jax.Array) -> Any:
        del key, draw
        return data

    return sample


def uniform(data: Tree, batch_size: int, *, indexed: bool = False) -> Sampler:
    """Examples drawn independently, with replacement.

    Args:
        data: leaves `[N, ...]`.
        batch_size: B >= 1.
        indexed: return `Indexed` batches.

    Returns:
        A `Sampler` of batches with leaves `[B, ...]`.

    Raises:
        ValueError: no leaves, leaves of different lengths, or a batch size below 1.

    Example:
        >>> sample = uniform(jnp.arange(10.0), batch_size=4)
        >>> sample(jax.random.key(0), 0).shape
        (4,)
    """
    size = _number_of_examples(data)
    batch_size = checks.count("uniform: batch_size", batch_size, 1)

    def sample(key: jax.Array, draw: jax.Array) -> Any:
        own = jax.random.fold_in(key, draw)
        index = jax.random.randint(own, (batch_size,), 0, size, jnp.int32)
        return _batch(data, index, indexed)

    return sample


def epochs(data: Tree, batch_size: int, *, indexed: bool = False) -> Sampler:
    """Examples without replacement: every one once in each pass, in a new order.

    The draws are consecutive stretches of an endless row of permutations, of which each
    is a function of the key and its number.  Where the batch size does not divide the
    number of examples, a batch begins in one pass and ends in the next; none is dropped
    or padded.

    Args:
        data: leaves `[N, ...]`, N times the batch size below 2^32.
        batch_size: B from 1 to N.
        indexed: return `Indexed` batches.

    Returns:
        A `Sampler` of batches with leaves `[B, ...]`.  Cost: of the order of B, not of
        N: a permutation is evaluated where it is needed (a Feistel network on the
        numbers below N, a pseudo-random order; up to 256 examples are permuted in
        earnest).

    Raises:
        ValueError: no leaves, leaves of different lengths, or a batch size out of
            range.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", the
    generalised Feistel network with cycle walking.

    Example:
        >>> sample = epochs(jnp.arange(6), batch_size=3)
        >>> both = [sample(jax.random.key(0), i) for i in (0, 1)]
        >>> sorted(int(x) for batch in both for x in batch)
        [0, 1, 2, 3, 4, 5]
    """
    size = _number_of_examples(data)
    batch_size = checks.count("epochs: batch_size", batch_size, 1)
    if batch_size > size or batch_size * size >= 2**32:
        raise ValueError(
            "epochs: expected a batch size of at most the number of examples, and the "
            f"product of both below 2^32; got {batch_size} and {size}."
        )

    def sample(key: jax.Array, draw: jax.Array) -> Any:
        draw = jnp.asarray(draw, jnp.uint32)
        # draw * batch_size + 0, 1, ... in passes of `size`, without overflow.
        first = (draw % size) * batch_size
        place = first + jnp.arange(batch_size, dtype=jnp.uint32)
        passes = (draw // size) * batch_size + place // size
        index = _permuted(key, passes, place % size, size)
        return _batch(data, index.astype(jnp.int32), indexed)

    return sample


_SMALL = 256  # examples
_ROUNDS = 8


def _permuted(
    key: jax.Array, passes: jax.Array, place: jax.Array, size: int
) -> jax.Array:
    """The numbers at the places `[B]` of the passes `[B]`, all uint32.

    A batch is no larger than a pass, so that it meets two of them at most.
    """
    own = jax.vmap(lambda p: jax.random.fold_in(key, p))(
        passes[0] + jnp.arange(2, dtype=jnp.uint32)
    )
    which = (passes != passes[0]).astype(jnp.int32)
    if size <= _SMALL:
        orders = jax.vmap(lambda k: jax.random.permutation(k, size))(own)
        return orders[which, place].astype(jnp.uint32)
    # On pairs (left, right) of a rectangle that just holds all numbers.
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    bits = jax.vmap(lambda k: jax.random.bits(k, (_ROUNDS,), jnp.uint32))(own)
    keys = bits[which].T  # [rounds, B]

    def shuffle(number: jax.Array) -> jax.Array:
        left, right = number % width, number // width
        for turn in range(0, _ROUNDS, 2):
            left = (left + _hash(right ^ keys[turn]) % width) % width
            right = (right + _hash(left ^ keys[turn + 1]) % height) % height
        return left + width * right

    # The few numbers that leave the range walk on until they are back in it.
    number, _ = iterate_until(
        lambda n: jnp.where(n < size, n, shuffle(n)),
        shuffle(place),
        lambda n: jnp.all(n < size),
        max_steps=2**31 - 1,
    )
    return number


def _hash(x: jax.Array) -> jax.Array:
    """Mixes the bits of uint32 numbers (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _number_of_examples(data: Tree) -> int:
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes == {()} or 0 in (sizes := {s[0] for s in sizes}):
        raise ValueError(
            "the data of a sampler must be arrays of one length, the number of "
            f"examples, on their first axis; got the lengths {sorted(sizes, key=str)}."
        )
    return sizes.pop()


def _batch(data: Tree, index: jax.Array, indexed: bool) -> Any:
    def rows(x: Any) -> jax.Array:
        return jnp.asarray(x).at[index].get(mode="promise_in_bounds")

    batch = jax.tree.map(rows, data)
    return Indexed(batch, index) if indexed else batch
