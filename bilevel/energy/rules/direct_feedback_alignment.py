"""Direct feedback alignment: the output's error goes to every layer at once."""

import math

import jax
import jax.numpy as jnp

from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aligned, Aux, LearningRule, said


def direct_feedback_alignment(network: Feedforward, cost: Cost) -> LearningRule:
    """Sends dC/da_L to every hidden layer through a random matrix of its own.

        delta_k = (B_k dC/da_L) f'(a_k),   B_k uniform in [-1, 1) / sqrt(size of a_k)

    and block k gets the gradient of <block_k(s_{k-1}), delta_k>; the last block gets
    its true gradient.

    Args:
        network: a chain of blocks.
        cost: of its outputs.

    Returns:
        A `LearningRule` whose parameters are `Aligned`; `feedback` holds B_k of shape
        `[outputs, *shape of a_k]`, one for each hidden layer. Cost: 1 g; the layers'
        updates do not wait for one another.

    Source: Nokland 2016, arXiv:1609.01596; scale as in Launay et al. 2020,
    arXiv:2006.12878.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> network = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> rule = energy.direct_feedback_alignment(network, energy.cross_entropy())
        >>> params = rule.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    f = network.activation.apply

    def init(key: jax.Array, inputs: jax.Array) -> Aligned:
        forward, backward = jax.random.split(key)
        params = network.init(forward, inputs)
        *hidden, outputs = jax.eval_shape(network.pre_activations, params, inputs)
        if outputs.ndim != 2:
            raise ValueError(
                "direct_feedback_alignment: expected outputs [B, n], got the shape "
                f"{outputs.shape}."
            )
        keys = jax.random.split(backward, max(len(hidden), 1))
        return Aligned(
            params,
            [
                _feedback(key, outputs.shape[-1], a.shape[1:], a.dtype)
                for key, a in zip(keys, hidden, strict=False)
            ],
        )

    def value_and_grad(
        params: Aligned, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Aligned]:
        del key
        pre_activations = network.pre_activations(params.forward, inputs)
        outputs = pre_activations[-1]

        def loss(outputs: jax.Array) -> jax.Array:
            return jnp.mean(cost(outputs, targets))

        value, error = jax.value_and_grad(loss)(outputs)
        grads, below = [], inputs
        for number, block in enumerate(network.blocks):
            delta, state = error, outputs
            if number < len(network.blocks) - 1:
                a = pre_activations[number]
                sent = jnp.tensordot(error, params.feedback[number], 1).astype(a.dtype)
                state, back = jax.vjp(f, a)
                (delta,) = back(sent)
            at = lambda p, block=block, below=below: block(p, below)
            grads += jax.vjp(at, params.forward[number])[1](delta)
            below = state
        feedback = jax.tree.map(jnp.zeros_like, params.feedback)
        return (value, Aux(outputs, unbiased=said(False))), Aligned(grads, feedback)

    def apply(params: Aligned, inputs: jax.Array) -> jax.Array:
        return network.apply(params.forward, inputs)

    return LearningRule("direct_feedback_alignment", init, apply, value_and_grad)


def _feedback(
    key: jax.Array, num_outputs: int, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    uniform = jax.random.uniform(key, (num_outputs, *shape), dtype, -1, 1)
    return uniform / math.sqrt(math.prod(shape))
