"""Deep Hopfield networks."""

import jax
import jax.numpy as jnp

from bilevel.energy import activations
from bilevel.energy.activations import Activation
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.networks.base import (
    EnergyNetwork,
    State,
    require_potential,
    responding,
    with_potentials,
)
from bilevel.energy.networks.chains import activations_of, drives_of
from bilevel.trees import Tree


def hopfield(
    chain: Feedforward, output: str | Activation = "identity"
) -> EnergyNetwork:
    """The chain with every connection in both directions.

        E = sum_k R_k(s_k) - <s_k, block_k(s_{k-1})>,      s_0 = inputs
        s_k = f(block_k(s_{k-1}) + block_{k+1}^T s_{k+1})  at the minimum

    Automatic differentiation of the coupling gives both directions, convolutions and
    pooling included (pool behind the convolution in the block).

    Args:
        chain: the layers; its activation must have a potential.
        output: activation of the last layer.

    Returns:
        An `EnergyNetwork`; the state is a list of L layers and starts at zero.
        `respond` costs about 1 g of the chain.

    Raises:
        ValueError: an activation without potential.

    Source: Scellier and Bengio 2017, arXiv:1602.05179; Scellier et al. 2023,
    arXiv:2312.15103 (the exact layer-wise response).

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "hard_sigmoid")
        >>> network = energy.networks.hopfield(chain)
        >>> params = network.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> [layer.shape for layer in network.start(params, jnp.ones((3, 4)))]
        [(3, 8), (3, 2)]
    """
    top = activations.by_name(output)
    units = activations_of(chain, top)
    for one in units.values():
        require_potential("hopfield", one)

    def coupling(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        drives = drives_of(chain, params, state, inputs)
        terms = [jnp.sum(s * a) for s, a in zip(state, drives, strict=True)]
        return -sum(terms[1:], terms[0])

    def start(params: Tree, inputs: jax.Array) -> State:
        shapes = jax.eval_shape(chain.pre_activations, params, inputs)
        return [jnp.zeros(one.shape, one.dtype) for one in shapes]

    return EnergyNetwork(
        init=chain.init,
        start=start,
        energy=with_potentials(coupling, units),
        coupling=coupling,
        respond=responding("hopfield", units, coupling),
        outputs=lambda params, state: state[-1],
        output_key=len(chain.blocks) - 1,
        stiff=top.curvature is not None,
        output_curvature=top.curvature,
        holomorphic=all(one.holomorphic for one in units.values()),
        conservative=True,
    )
