"""Predictive coding networks: every layer predicts the next."""

import jax
import jax.numpy as jnp

from bilevel.energy import activations
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.networks.base import EnergyNetwork, State, responding
from bilevel.energy.networks.chains import drives_of, forward_states
from bilevel.trees import Tree


def predictive(chain: Feedforward, *, free_output: bool = False) -> EnergyNetwork:
    """The energy of a chain's prediction errors.

        E = sum over hidden k of |s_k - f(a_k)|^2 / 2,     a_k = block_k(s_{k-1})

    The outputs are the last prediction, a_L; a cost C(a_L, y) with nudge 1 makes it the
    energy of supervised predictive coding, for squared error with s_L clamped to y.

    Args:
        chain: the layers, any activation.
        free_output: the last layer is a state of its own, with the term
            |s_L - a_L|^2 / 2, and the outputs are s_L.

    Returns:
        An `EnergyNetwork`; the state is a list of the layers and starts at the forward
        pass, where E is 0. `respond` is one step of gradient descent with step size 1.

    Raises:
        ValueError: no hidden layer.

    Source: Whittington and Bogacz 2017; Pinchetti et al. 2024, arXiv:2407.01163.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "gelu")
        >>> network = energy.networks.predictive(chain)
        >>> params = network.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> [layer.shape for layer in network.start(params, jnp.ones((3, 4)))]
        [(3, 8)]
    """
    num = len(chain.blocks)
    if num < 2:
        raise ValueError(f"predictive: expected a hidden layer, got {num} block.")
    identity = activations.by_name("identity")
    sizes = range(num if free_output else num - 1)

    def predictions(params: Tree, state: State, inputs: jax.Array) -> State:
        found = drives_of(chain, params, state, inputs)
        return [
            a if key == num - 1 else chain.activation.apply(a)
            for key, a in enumerate(found)
        ]

    def coupling(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        pairs = zip(state, predictions(params, state, inputs), strict=True)
        terms = [jnp.sum(m * (m / 2 - s)) for s, m in pairs]
        return sum(terms[1:], terms[0])

    def energy(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        pairs = zip(state, predictions(params, state, inputs), strict=True)
        terms = [jnp.sum((s - m) ** 2) / 2 for s, m in pairs]
        return sum(terms[1:], terms[0])

    def start(params: Tree, inputs: jax.Array) -> State:
        return forward_states(chain, params, inputs)[: len(sizes)]

    def outputs(params: Tree, state: State) -> jax.Array:
        return state[-1] if free_output else chain.blocks[-1](params[-1], state[-1])

    return EnergyNetwork(
        init=chain.init,
        start=start,
        energy=energy,
        coupling=coupling,
        respond=responding("predictive", dict.fromkeys(sizes, identity), coupling),
        outputs=outputs,
        output_key=num - 1 if free_output else None,
        stiff=free_output,
        output_curvature=1.0 if free_output else None,
        holomorphic=chain.activation.holomorphic,
        conservative=True,
    )
