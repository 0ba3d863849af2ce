"""Predictive coding: states descend the prediction errors, then parameters do."""

import jax
import jax.numpy as jnp

from bilevel.energy import networks, phases, relaxations
from bilevel.energy.costs import Cost, require_cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.energy.nudges import check_beta
from bilevel.energy.relaxations import Relaxation
from bilevel.trees import Tree


def predictive_coding(
    chain: Feedforward,
    cost: Cost,
    inference: Relaxation | None = None,
    *,
    beta: float = 1.0,
    tolerance: float = 0.1,
) -> LearningRule:
    """Descends the prediction errors of the layers, with the targets given.

        E = sum over hidden k of |s_k - f(a_k)|^2 / 2 + beta C(a_L, y)

    From the forward pass, where only the last term is not zero, inference moves the
    states; the update is the derivative of E at the states that it reaches, over beta.
    For squared error and beta 1 the output is clamped to the target. For beta -> 0 and
    converged inference it is back-propagation, with an error O(beta).

    Args:
        chain: the layers, any activation.
        cost: of the outputs.
        inference: solver for the states; default 8 gradient steps of size 0.1. One
            step is nearly back-propagation, scaled: say how many you take.
        beta: nudge of each sample's cost.
        tolerance: `aux.converged` as in `equilibrium_propagation`; inference of a few
            steps is meant not to converge.

    Returns:
        A `LearningRule`. Cost: 2 g and one for each step. Labels are not needed to
        predict: `apply` is the forward pass.

    Raises:
        ValueError: beta that is not positive; a chain without hidden layer.

    Source: Whittington and Bogacz 2017; Pinchetti et al. 2024, arXiv:2407.01163.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "gelu")
        >>> rule = energy.predictive_coding(chain, energy.cross_entropy())
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    check_beta("predictive_coding", beta)
    require_cost("predictive_coding", cost)
    network = networks.predictive(chain)
    infer = inference or relaxations.sweeps(8, order="synchronous", step_size=0.1)

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        data = phases.Data(params, inputs, targets)
        (own,) = phases.phase_keys(key, infer)
        start = network.start(params, inputs)
        outputs = network.outputs(params, start)
        betas = jnp.array([beta], outputs.dtype)
        settled = phases.relax(
            network, infer, data, start, own, cost=cost, beta=betas[0]
        )
        stacked = jax.tree.map(lambda x: x[None], settled.state)
        grads = phases.contrast(
            network, data, None, stacked, 1 / betas, cost=cost, betas=betas
        )
        aux = phases.report_from_forward(outputs, start, settled, tolerance, beta)
        aux = aux._replace(unbiased=said(True))
        return (jnp.mean(cost(outputs, targets)), aux), grads

    return LearningRule("predictive_coding", chain.init, chain.apply, value_and_grad)
