"""Rules that go backwards block by block, each block with a pull-back of its own.

A block maps the pre-activation a below to a' = l(s), s = f(a), with l affine. Backwards
it receives the cotangent c' of a' and hands down

    q = (d l)^T c'                        the transport; others than l's own may do
    c, sbar = pull(a, q)                  the activation's part
    parameters: (d_params l(sbar))^T c'

Back-propagation is pull(a, q) = f'(a) q, f(a). A pull that takes a difference of f
along q has J q where back-propagation has J^T q: f must then have a symmetric Jacobian.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.energy.affine import require_affine
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Block, Feedforward, Transpose
from bilevel.energy.fenchel_pairs import require_gradient
from bilevel.energy.learning_rule import Aligned, Aux, LearningRule, said
from bilevel.energy.transports import Transport
from bilevel.trees import Tree

Pull: TypeAlias = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""`(a, q) -> (cotangent of a, the state that the parameters see)`."""


def derivative(f: Callable[[jax.Array], jax.Array]) -> Pull:
    """The pull-back of back-propagation, f'(a) q; J^T q where f couples units."""

    def pull(a: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, back = jax.vjp(f, a)
        return back(q)[0], state

    return pull


def require_gradients(
    name: str, network: Feedforward, params: list[Tree], inputs: jax.Array
) -> None:
    """Raises `ValueError` where f, on some hidden layer, has no symmetric Jacobian."""
    *hidden, _ = jax.eval_shape(network.pre_activations, params, inputs)
    for a in hidden:
        require_gradient(name, network.activation, a)


def blockwise(
    name: str,
    network: Feedforward,
    cost: Cost,
    pull: Pull | Sequence[Pull],
    transport: Transport,
    scale: float = 1.0,
    *,
    affine: bool = False,
) -> LearningRule:
    """Assembles a rule from its two parts.

    Args:
        name: of the rule.
        network: a chain of blocks.
        cost: of its outputs.
        pull: the activation's part, one for all or one for each hidden layer.
        transport: the blocks' part.
        scale: factor of each sample's cost on the way back, which the gradients are
            divided by: matters where `pull` is not linear in q.
        affine: refuse blocks that are neither affine nor pooling, whose parameters
            would see another state than the transpose does, and activations whose
            Jacobian is not symmetric.

    Returns:
        A `LearningRule`; its parameters are `Aligned` where there is feedback.
    """
    f = network.activation.apply
    blocks = network.blocks
    pulls = [pull] * (len(blocks) - 1) if callable(pull) else list(pull)
    first, *units = [
        blocks[0],
        *(
            _unit(block, f, one, back, transport)
            for block, one, back in zip(
                blocks[1:], pulls, network.transposes[1:], strict=True
            )
        ),
    ]

    def init(key: jax.Array, inputs: jax.Array) -> Tree:
        forward, backward = jax.random.split(key)
        if not transport.has_feedback:
            return network.init(key, inputs)
        feedback = network.init(backward, inputs)[1:]
        return Aligned(network.init(forward, inputs), feedback)

    def parts(params: Tree) -> tuple[Any, Any]:
        if transport.has_feedback:
            return params.forward, params.feedback
        return params, [()] * len(units)

    def apply(params: Tree, inputs: jax.Array) -> jax.Array:
        return network.apply(parts(params)[0], inputs)

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        del key
        if affine:
            require_affine(name, network, parts(params)[0], inputs)
            require_gradients(name, network, parts(params)[0], inputs)

        def total(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Aux]]:
            forward, feedback = parts(params)
            a = first(forward[0], inputs)
            for unit, own, back in zip(units, forward[1:], feedback, strict=True):
                a = unit(own, back, a)
            costs = cost(a, targets)
            return scale * jnp.sum(costs), (
                jnp.mean(costs),
                Aux(a, unbiased=said(transport.is_exact)),
            )

        grads, aux = jax.grad(total, has_aux=True)(params)
        return aux, trees.scale(1 / (scale * len(inputs)), grads)

    return LearningRule(name, init, apply, value_and_grad)


def _unit(
    block: Block,
    f: Callable[[jax.Array], jax.Array],
    pull: Pull,
    transpose: Transpose,
    transport: Transport,
) -> Callable[[Tree, Tree, jax.Array], jax.Array]:
    """Activation and block, with the pull-back of the rule."""

    @jax.custom_vjp
    def unit(params: Tree, feedback: Tree, a: jax.Array) -> jax.Array:
        del feedback
        return block(params, f(a))

    def forward(
        params: Tree, feedback: Tree, a: jax.Array
    ) -> tuple[jax.Array, tuple[Tree, Tree, jax.Array]]:
        return unit(params, feedback, a), (params, feedback, a)

    def backward(
        saved: tuple[Tree, Tree, jax.Array], cotangent: jax.Array
    ) -> tuple[Tree, Tree, jax.Array]:
        params, feedback, a = saved
        weights = transport.weights(params, feedback)
        if weights is params:
            (q,) = jax.vjp(lambda s: block(params, s), f(a))[1](cotangent)
        else:
            q = transpose(params, weights, f(a), cotangent)
        below, state = pull(a, q)
        (grads,) = jax.vjp(lambda p: block(p, state), params)[1](cotangent)
        learned = grads if transport.is_learned else trees.zeros_like(feedback)
        return grads, learned, below

    unit.defvjp(forward, backward)
    return unit
