"""What the networks that are built from a feed-forward chain share."""

import jax
import jax.numpy as jnp

from bilevel.energy.activations import Activation
from bilevel.energy.affine import is_affine
from bilevel.energy.feedforward import Block, Feedforward
from bilevel.energy.networks.base import State, is_complex
from bilevel.energy.trusted import trusted
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
    return [_drive(block, own, s) for block, own, s in some]


def _drive(block: Block, params: Tree, state: jax.Array) -> jax.Array:
    """block(s); of a complex state the real and the imaginary part by themselves.

    Products of complex with real weights take several times as long.
    """
    is_mixed = jnp.iscomplexobj(state) and not is_complex(params)
    if not (is_mixed and is_affine(block, params, _real(state))):
        return block(params, state)

    @trusted
    def in_parts(params: Tree, state: jax.Array) -> jax.Array:
        at = lambda s: block(params, s)
        return jax.lax.complex(*jax.jvp(at, (state.real,), (state.imag,)))

    return in_parts(params, state)


def _real(state: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(state.shape, jnp.finfo(state.dtype).dtype)


def forward_states(
    chain: Feedforward, params: Tree, inputs: jax.Array, *, linear_output: bool = True
) -> State:
    """The states of the forward pass, the last layer as it is."""
    found = chain.pre_activations(params, inputs)
    states = [chain.activation.apply(a) for a in found[:-1]]
    top = found[-1] if linear_output else chain.activation.apply(found[-1])
    return [*states, top]
