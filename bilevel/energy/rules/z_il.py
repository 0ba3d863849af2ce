"""Zero-divergence inference learning: predictive coding that is back-propagation."""

import jax
import jax.numpy as jnp

from bilevel.energy import networks
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.trees import Tree


def z_il(chain: Feedforward, cost: Cost) -> LearningRule:
    """Predictive coding with each layer updated as the error arrives.

    Inference takes steps of size 1 from the forward pass, and layer k is updated at
    t = L - k, when the states below it are still those of the forward pass: the
    gradient is that of back-propagation, from local quantities. At t nothing but layer
    k's own prediction error has reached the layer below, so that this alone is
    computed.

    Args:
        chain: the layers, any activation.
        cost: of the outputs.

    Returns:
        A `LearningRule`. Cost: 1 g.

    Raises:
        ValueError: a chain without hidden layer.

    Source: Song et al. 2020, "Can the brain do backpropagation? Exact implementation
    of backpropagation in predictive coding networks", algorithm 2.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> rule = energy.z_il(chain, energy.cross_entropy())
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    networks.predictive(chain)  # refuses a chain without hidden layer
    f = chain.activation.apply

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        del key
        states, pulls = [inputs], []
        for block, own in zip(chain.blocks[:-1], params[:-1], strict=True):
            predicted = lambda p, s, block=block: f(block(p, s))
            state, pull = jax.vjp(predicted, own, states[-1])
            states.append(state)
            pulls.append(pull)

        def nudge(own: Tree, state: jax.Array) -> tuple[jax.Array, jax.Array]:
            outputs = chain.blocks[-1](own, state)
            return jnp.sum(cost(outputs, targets)), outputs

        descent = jax.grad(nudge, argnums=(0, 1), has_aux=True)
        (last, slope), outputs = descent(params[-1], states[-1])
        found = [last]
        for state, pull in zip(reversed(states[1:]), reversed(pulls), strict=True):
            # The step that has moved this layer is its error: its prediction, from the
            # layer below, is still the state of the forward pass.
            moved = state - slope
            grads, slope = pull(state - moved)
            found.append(grads)
        grads = jax.tree.map(lambda g: g / len(inputs), found[::-1])
        aux = Aux(outputs, states[1:], unbiased=said(True))
        return (jnp.mean(cost(outputs, targets)), aux), grads

    return LearningRule("z_il", chain.init, chain.apply, value_and_grad)
