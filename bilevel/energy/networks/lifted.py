"""Lifted networks: a chain as an energy that is zero at its forward pass."""

import jax
import jax.numpy as jnp

from bilevel.energy import activations
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.fenchel_pairs import require_conjugate
from bilevel.energy.networks.base import (
    EnergyNetwork,
    State,
    require_potential,
    responding,
    with_potentials,
)
from bilevel.energy.networks.chains import activations_of, drives_of, forward_states
from bilevel.trees import Tree


def lifted(chain: Feedforward) -> EnergyNetwork:
    """The Fenchel-lifted chain, with a linear output.

        E = sum_k R_k(s_k) + R_k*(a_k) - <s_k, a_k>,   a_k = block_k(s_{k-1})

    By Young's inequality E >= 0, and 0 at s_k = f(a_k). Its derivative in the block's
    parameters, (f(a_k) - s_k) s_{k-1}^T, has no f'. For ReLU it is the energy of LPOM.

    Args:
        chain: the layers; its activation must have a potential.

    Returns:
        An `EnergyNetwork`; the state is a list of L layers and starts at the forward
        pass. A step of `respond` need not decrease E unless |block_{k+1}| is at most 1:
        relax with a step size of 1 / (1 + l), l = max(0, (|block_{k+1}|^2 - 1) / 2).

    Raises:
        ValueError: an activation without potential; when it is traced, one that is not
            the derivative of its conjugate.

    Source: Li et al. 2019 (LPOM); Gu et al. 2018, arXiv:1811.08039 (Fenchel lifted);
    Zach 2021, arXiv:2105.07231.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> network = energy.networks.lifted(chain)
        >>> inputs = jnp.ones((3, 4))
        >>> params = network.init(jax.random.key(0), inputs)
        >>> state = network.start(params, inputs)
        >>> float(jnp.abs(network.energy(params, state, inputs)).round(5))
        0.0
    """
    units = activations_of(chain, activations.by_name("identity"))
    for one in units.values():
        require_potential("lifted", one)

    def coupling(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        total = jnp.zeros((), state[0].dtype)
        for key, a in enumerate(drives_of(chain, params, state, inputs)):
            one = units[key]
            assert one.conjugate is not None
            require_conjugate("lifted", one, a)
            # A conjugate may have one number for an example.
            gap = _each(one.conjugate(a)) - _each(state[key] * a)
            total = total + jnp.sum(gap)
        return total

    return EnergyNetwork(
        init=chain.init,
        start=lambda params, inputs: forward_states(chain, params, inputs),
        energy=with_potentials(coupling, units),
        coupling=coupling,
        respond=responding("lifted", units, coupling),
        outputs=lambda params, state: state[-1],
        output_key=len(chain.blocks) - 1,
        stiff=True,
        output_curvature=1.0,
        conservative=True,
    )


def _each(x: jax.Array) -> jax.Array:
    """The sum over all but the first axis, `[B]`."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
