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


# Rules of chains: `(chain, cost) -> rule`.
ON_CHAINS = {
    "back_propagation": energy.back_propagation,
    "difference_target_propagation": functools.partial(
        energy.difference_target_propagation, noise=0.0
    ),
    "direct_feedback_alignment": energy.direct_feedback_alignment,
    "dual_propagation": energy.dual_propagation,
    "feedback_alignment": energy.feedback_alignment,
    "fenchel_back_propagation": energy.fenchel_back_propagation,
    "incremental_predictive_coding": energy.incremental_predictive_coding,
    "kolen_pollack": energy.kolen_pollack,
    "lpom": functools.partial(energy.lpom, num_sweeps=1, num_inner=2),
    "multi_pass_dual_propagation": energy.multi_pass_dual_propagation,
    "predictive_coding": energy.predictive_coding,
    "sign_symmetry": energy.sign_symmetry,
    "z_il": energy.z_il,
}
_FREE, _NUDGED = energy.relaxations.sweeps(12), energy.relaxations.sweeps(3)


def _on_hopfield(make: Any, *phases: Any, **options: Any) -> Any:
    def rule(chain: Any, cost: Any) -> Any:
        return make(energy.networks.hopfield(chain), cost, *phases, **options)

    return rule


# Rules of energies, on the Hopfield network of a chain.
ON_ENERGIES = {
    "contrastive_hebbian_learning": _on_hopfield(
        energy.contrastive_hebbian_learning, _FREE
    ),
    "coupled_learning": _on_hopfield(energy.coupled_learning, _FREE, _NUDGED),
    "equilibrium_propagation": _on_hopfield(
        energy.equilibrium_propagation, _FREE, _NUDGED
    ),
    "holomorphic_equilibrium_propagation": _on_hopfield(
        energy.holomorphic_equilibrium_propagation, _FREE, _NUDGED
    ),
    "recurrent_back_propagation": _on_hopfield(
        energy.recurrent_back_propagation, _FREE
    ),
    "truncated_back_propagation_through_time": _on_hopfield(
        energy.truncated_back_propagation_through_time, num_steps=6, truncation=3
    ),
}
RULES = {**ON_CHAINS, **ON_ENERGIES}


def relative_error(a: Tree, b: Tree) -> float:
    gaps = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)
    sizes = jax.tree.map(lambda y: jnp.sum(y**2), b)
    return float(jnp.sqrt(sum(jax.tree.leaves(gaps)) / sum(jax.tree.leaves(sizes))))
