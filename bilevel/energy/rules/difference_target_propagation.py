"""Difference target propagation: targets come down through learned inverses."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aligned, Aux, LearningRule, said
from bilevel.trees import Tree

Function: TypeAlias = Callable[[jax.Array], jax.Array]


class Inverse(NamedTuple):
    """The parameters of h(s) = f(s V + c), s and h(s) flattened.

    Attributes:
        kernel: V `[n_{k+1}, n_k]`.
        bias: c `[n_k]`.
    """

    kernel: jax.Array
    bias: jax.Array


def difference_target_propagation(
    network: Feedforward, cost: Cost, *, rate: float = 0.1, noise: float = 0.1
) -> LearningRule:
    """Every block learns to reach a target, which a learned inverse brings down.

    With the states s_k = f(a_k) of the forward pass and inverses h_k from layer k+1 to
    layer k,

        t_{L-1} = s_{L-1} - rate dC/ds_{L-1}
        t_k = s_k + h_k(t_{k+1}) - h_k(s_{k+1}),      k = L-2, ..., 1

    block k gets the gradient of |f(block_k(s_{k-1})) - t_k|^2 / 2 with the target held,
    divided by `rate`, and the last block its true gradient. So the blocks L and L-1
    have the gradient of back-propagation. The inverse h_k gets the gradient of

        |h_k(f(block_{k+1}(s_k + e))) - (s_k + e)|^2 / 2,   e Gaussian

    with the states held. For exact inverses of invertible layers the step to the
    targets is that of Gauss and Newton: s_k - t_k = rate J^-1 dC/ds_{L-1} to first
    order in `rate`, with J = ds_{L-1}/ds_k in place of which back-propagation has its
    transpose.

    Args:
        network: a chain of blocks.
        cost: of its outputs.
        rate: step to the first target, on each *sample's* cost.
        noise: standard deviation of e; 0 fits the inverses to the states alone.

    Returns:
        A `LearningRule` whose parameters are `Aligned`; `feedback` holds an `Inverse`
        for each of the hidden layers 1 to L-2, dense whatever the block is. With noise
        it needs a key. Cost: 1 g, three dense layers for each inverse, and its own
        gradient. The inverses may need a learning rate of their own: use
        `optax.partition`.

    Raises:
        ValueError: `rate` is not positive and finite, `noise` negative or not finite;
            when it is called, noise without a key.

    Source: Lee et al. 2015, arXiv:1412.7525; Meulemans et al. 2020, arXiv:2006.14331
    (Gauss-Newton).

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> blocks = [linen.Dense(8), linen.Dense(8), linen.Dense(2)]
        >>> network = energy.feedforward(blocks, "tanh")
        >>> rule = difference_target_propagation(network, energy.cross_entropy())
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels, jax.random.key(1))
    """
    name = "difference_target_propagation"
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"{name}: rate must be positive and finite, got {rate}.")
    if not (noise >= 0 and math.isfinite(noise)):
        raise ValueError(f"{name}: noise must be finite and >= 0, got {noise}.")
    f, blocks = network.activation.apply, network.blocks

    def init(key: jax.Array, inputs: jax.Array) -> Aligned:
        forward, backward = jax.random.split(key)
        params = network.init(forward, inputs)
        *hidden, _ = jax.eval_shape(network.pre_activations, params, inputs)
        keys = jax.random.split(backward, max(len(hidden), 1))
        feedback = [
            _inverse(key, math.prod(above.shape[1:]), below)
            for key, below, above in zip(keys, hidden[:-1], hidden[1:], strict=False)
        ]
        return Aligned(params, feedback)

    def value_and_grad(
        params: Aligned, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Aligned]:
        forward, feedback = params
        if noise and key is None and feedback:
            raise ValueError(
                f"{name}: the noise of the inverses needs a key; call rule(params, "
                "inputs, targets, key), or take noise=0."
            )
        states, pulls = [], []
        for block, own in zip(blocks[:-1], forward[:-1], strict=True):
            below = states[-1] if states else inputs
            at = lambda p, block=block, below=below: f(block(p, below))
            state, pull = jax.vjp(at, own)
            states.append(state)
            pulls.append(pull)

        def loss(own: Tree, state: jax.Array) -> tuple[jax.Array, jax.Array]:
            outputs = blocks[-1](own, state)
            return jnp.mean(cost(outputs, targets)), outputs

        below = states[-1] if states else inputs
        (value, outputs), (last, error) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(forward[-1], below)
        gaps = _gaps(f, feedback, states, rate * len(inputs) * error)
        scale = 1 / (rate * len(inputs))
        grads = [pull(scale * gap)[0] for pull, gap in zip(pulls, gaps, strict=False)]
        learned = jax.grad(_reconstruction)(
            feedback, network, forward, states, noise, key
        )
        return (value, Aux(outputs, unbiased=said(False))), Aligned(
            [*grads, last], learned
        )

    def apply(params: Aligned, inputs: jax.Array) -> jax.Array:
        return network.apply(params.forward, inputs)

    return LearningRule(name, init, apply, value_and_grad)


def _inverse(
    key: jax.Array, num_above: int, below: jax.Array | jax.ShapeDtypeStruct
) -> Inverse:
    size = math.prod(below.shape[1:])
    draw = jax.nn.initializers.glorot_normal()
    kernel = draw(key, (num_above, size), below.dtype)
    return Inverse(kernel, jnp.zeros((size,), below.dtype))


def _invert(
    f: Function, inverse: Inverse, state: jax.Array, like: jax.Array
) -> jax.Array:
    """h, of the shape of the layer below, whose units f may couple."""
    flat = state.reshape(len(state), -1)
    return f((flat @ inverse.kernel + inverse.bias[None]).reshape(like.shape))


def _gaps(
    f: Function, feedback: list[Inverse], states: list[jax.Array], gap: jax.Array
) -> list[jax.Array]:
    """The distances s_k - t_k, from the `gap` of the last hidden layer down.

    They are what the gradients need; as differences of states and targets they would
    lose the digits that the two share.
    """
    gaps = [gap]
    for k in reversed(range(len(feedback))):
        at = functools.partial(_invert, f, feedback[k], like=states[k])
        above = states[k + 1]
        gaps.insert(0, at(above) - at(above - gaps[0]))
    return gaps


def _reconstruction(
    feedback: list[Inverse],
    network: Feedforward,
    params: list[Tree],
    states: list[jax.Array],
    noise: float,
    key: jax.Array | None,
) -> jax.Array:
    """The mean over examples of what the inverses are to make small."""
    f = network.activation.apply
    total = jnp.zeros((), jnp.float32)
    for k, inverse in enumerate(feedback):
        state = states[k]
        if noise and key is not None:
            own = jax.random.fold_in(key, k)
            state = state + noise * jax.random.normal(own, state.shape, state.dtype)
        above = f(network.blocks[k + 1](params[k + 1], state))
        gap = _invert(f, inverse, above, state) - state
        total = total + jnp.sum(gap**2) / (2 * len(state))
    return total
