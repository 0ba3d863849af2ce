"""What the networks that are built from a feed-forward chain share."""

import jax

from bilevel.energy.activations import Activation
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.networks.base import State
from bilevel.trees import Tree


def activations_of(chain: Feedforward, top: Activation) -> dict[int, Activation]:
    """The activation of each layer: the chain's, and that of the last."""
    last = len(chain.blocks) - 1
    return {k: chain.activation for k in range(last)} | {last: top}


def drives_of(
    chain: Feedforward, params: Tree, state: State, inputs: jax.Array
) -> list[jax.Array]:
    """block_k(s_{k-1}) for the layers of the state, s_0 = inputs."""
    below = [inputs, *state[:-1]]
    some = zip(chain.blocks, params, below, strict=False)
    return [block(own, s) for block, own, s in some]


def forward_states(
    chain: Feedforward, params: Tree, inputs: jax.Array, *, linear_output: bool = True
) -> State:
    """The states of the forward pass, the last layer as it is."""
    found = chain.pre_activations(params, inputs)
    states = [chain.activation.apply(a) for a in found[:-1]]
    top = found[-1] if linear_output else chain.activation.apply(found[-1])
    return [*states, top]
