"""Networks, data and rules that the tests of learning rules share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from bilevel import energy
from bilevel.trees import Tree

KEY = jax.random.key(3)
BATCH, CLASSES = 6, 5
Dense = functools.partial(linen.Dense, param_dtype=jnp.float64)
Conv = functools.partial(linen.Conv, param_dtype=jnp.float64)


def dense(activation: str = "tanh", widths: tuple[int, ...] = (16, 12)) -> Any:
    blocks = [Dense(width) for width in (*widths, CLASSES)]
    return energy.feedforward(blocks, activation), (BATCH, 20)


def convolutional(activation: str = "tanh") -> Any:
    """Two convolutions, the second behind max-pooling, and a dense layer."""
    pool = lambda s: linen.max_pool(s, (2, 2), (2, 2))
    blocks = [
        Conv(4, (3, 3)),
        [pool, Conv(3, (3, 3))],
        [pool, lambda s: s.reshape(len(s), -1), Dense(CLASSES)],
    ]
    return energy.feedforward(blocks, activation), (BATCH, 8, 8, 2)


def data(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    inputs, labels = jax.random.split(KEY)
    return (
        jax.random.normal(inputs, shape, jnp.float64),
        jax.random.randint(labels, shape[:1], 0, CLASSES),
    )


RULES = {
    "back_propagation": energy.back_propagation,
    "direct_feedback_alignment": energy.direct_feedback_alignment,
    "dual_propagation": energy.dual_propagation,
    "feedback_alignment": energy.feedback_alignment,
    "kolen_pollack": energy.kolen_pollack,
    "sign_symmetry": energy.sign_symmetry,
}


def relative_error(a: Tree, b: Tree) -> float:
    gaps = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)
    sizes = jax.tree.map(lambda y: jnp.sum(y**2), b)
    return float(jnp.sqrt(sum(jax.tree.leaves(gaps)) / sum(jax.tree.leaves(sizes))))
