"""Lifted proximal operator machines: training by the energy of lifted networks."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel.energy import diagnostics, networks, phases, relaxations
from bilevel.energy.costs import Cost, require_cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.energy.networks.base import EnergyNetwork, State
from bilevel.energy.nudges import check_beta
from bilevel.trees import Tree

# Power iteration falls short of a norm, and at (|block|^2 - 1) / 2 itself steps swing.
_MARGIN = 1.2


def lpom(
    chain: Feedforward,
    cost: Cost,
    *,
    beta: float = 1.0,
    clamped: bool = True,
    num_sweeps: int = 2,
    num_inner: int = 5,
    tolerance: float = 0.1,
) -> LearningRule:
    """Descends the Fenchel-lifted energy with the outputs drawn to the targets.

        E = sum_k R_k(s_k) + R_k*(a_k) - <s_k, a_k>,   a_k = block_k(s_{k-1})

    E is 0 at the forward pass, so that one phase is enough: the update is the
    derivative of E at the states it relaxes to, (f(a_k) - s_k) s_{k-1}^T / beta, which
    has no f'. A sweep goes from the last layer to the first and gives each `num_inner`
    steps, which do not increase E (as long as no pooling maximum moves),

        s_k <- f((a_k + r_k + l_k s_k) / (1 + l_k))
        r_k = block_{k+1}^T (s_{k+1} - f(a_{k+1}))
        l_k = max(0, (1.2 |block_{k+1}|^2 - 1) / 2)

    (norms by power iteration) where R is s^2 / 2 on an interval (identity, relu,
    hard_sigmoid); other activations go 1 / (1 + l_k) of the way to f(a_k + r_k).

    Args:
        chain: the layers; the activation must have a potential.
        cost: of the outputs.
        beta: per sample.
        clamped: the outputs are held at o - beta dC/do, o those of the forward pass:
            with squared error and beta 1 at the targets, as published; for beta -> 0
            dC/do is then weighted as in `coupled_learning`. Otherwise E + beta C is
            relaxed, which approaches back-propagation with an error O(beta), if the
            sweeps are many enough to settle; a few stop short of it, at any beta.
        num_sweeps: from the last layer to the first.
        num_inner: steps of a layer in each sweep.
        tolerance: `aux.converged` as in `equilibrium_propagation`, from three sweeps
            on; two, the default, are not meant to settle.

    Returns:
        A `LearningRule`. Cost: 2 g, and one for each sweep and inner step; 40 more for
        the norms of blocks that pool, one for each example.

    Raises:
        ValueError: an activation without potential; beta that is not positive.

    Source: Li, Fang and Lin 2019, "Lifted proximal operator machines"; the proximal
    step as in Zach and Estellers 2019 and Hoier et al. 2023, arXiv:2302.01228.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)])
        >>> rule = energy.lpom(chain, energy.squared_error())
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    check_beta("lpom", beta)
    require_cost("lpom", cost)
    if num_sweeps < 1 or num_inner < 1:
        raise ValueError(
            "lpom: num_sweeps and num_inner must be at least 1, got "
            f"{num_sweeps}, {num_inner}."
        )
    network = networks.lifted(chain)
    last = len(chain.blocks) - 1
    order = [[key] for key in reversed(range(last)) for _ in range(num_inner)]

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        del key
        data = phases.Data(params, inputs, targets)
        start = network.start(params, inputs)
        outputs = start[-1]
        above = zip(chain.blocks[1:], params[1:], start[:-1], strict=True)
        norms = [diagnostics.block_norm(*one) for one in above]
        damping = [jnp.maximum(0, (_MARGIN * n**2 - 1) / 2) for n in norms]
        damping = [l.astype(outputs.dtype) for l in damping]
        sizes = [1 / (1 + l) for l in damping]
        damped = network
        if chain.activation.curvature == 1:
            damped = _proximal(network, damping)
            sizes = [1.0] * last
        settle = relaxations.damped_sweeps(num_sweeps, [[last], *order], [*sizes, 1.0])
        if clamped:
            slope = jax.grad(lambda o: jnp.sum(cost(o, targets)))(outputs)
            held = {last: outputs - beta * slope}
            settled = phases.relax(damped, settle, data, start, held=held)
        else:
            settled = phases.relax(damped, settle, data, start, cost=cost, beta=beta)
        stacked = jax.tree.map(lambda x: x[None], settled.state)
        weights = jnp.array([1 / beta], outputs.dtype)
        grads = phases.contrast(network, data, None, stacked, weights)
        aux = phases.report_from_forward(outputs, start, settled, tolerance, beta)
        aux = aux._replace(unbiased=said(not clamped))
        return (jnp.mean(cost(outputs, targets)), aux), grads

    return LearningRule("lpom", chain.init, chain.apply, value_and_grad)


def _proximal(network: EnergyNetwork, damping: list[jax.Array]) -> EnergyNetwork:
    """Every hidden layer is drawn to where it is, l_k |x - s_k|^2 / 2."""
    drawn = dict(enumerate(damping))

    def respond(
        params: Tree, state: State, inputs: jax.Array, force: Any, stiffness: Any
    ) -> State:
        return network.respond(params, state, inputs, force, {**stiffness, **drawn})

    return network._replace(respond=respond)
