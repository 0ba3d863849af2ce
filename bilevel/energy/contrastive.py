"""Rules that contrast phases: free, then pushed side by side, then the difference."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.energy import phases
from bilevel.energy.analytic import require_analytic
from bilevel.energy.costs import Cost, require_cost
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.energy.networks.base import EnergyNetwork
from bilevel.energy.nudges import are_bounded
from bilevel.energy.relaxations import Relaxation
from bilevel.trees import Tree


class Plan(NamedTuple):
    """Which phases there are.

    Attributes:
        beta: the size of their nudges; where it is traced and not positive, the rule is
            another one, and `aux.converged` False.
        nudges: `(key, dtype of the outputs) -> (betas, weights)`, each `[P]`.
    """

    beta: float | jax.Array
    nudges: Callable[[jax.Array | None, jnp.dtype], tuple[jax.Array, jax.Array]]


def contrastive(
    name: str,
    network: EnergyNetwork,
    cost: Cost,
    solvers: tuple[Relaxation, Relaxation],
    plan: Plan,
    *,
    tolerance: float,
    against_free: bool,
    clamped: bool = False,
) -> LearningRule:
    """Assembles a rule from the nudges of its phases.

    Args:
        name: of the rule.
        network: with the energy.
        cost: of its outputs.
        solvers: of the free phase, and of the pushed ones, which start from its state.
        plan: the nudges and their weights.
        tolerance: of the way that is left to the phases, relative to the response, for
            `aux.converged`.
        against_free: the weights do not sum to 0: the free state has the rest.
        clamped: the outputs are held at o - beta dC/do, instead of beta C being added.

    Returns:
        A `LearningRule`; it raises `ValueError` where a plan is complex and the energy
        not analytic.
    """
    free, second = solvers
    require_cost(name, cost)

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        data = phases.Data(params, inputs, targets)
        keys = phases.phase_keys(key, free, second)
        first = phases.relax_free(network, free, params, inputs, keys[0])
        outputs = network.outputs(params, first.state)
        betas, weights = plan.nudges(key, outputs.dtype)
        if jnp.iscomplexobj(betas):
            require_analytic(name, network, cost, data, first.state)
        push = phases.relax_clamped if clamped else phases.relax_at
        pushed = push(network, second, data, first.state, cost, betas, keys[1])
        grads = phases.contrast(
            network,
            data,
            first.state if against_free else None,
            pushed.state,
            weights,
            cost=None if clamped else cost,
            betas=betas,
        )
        aux = phases.report(outputs, first, pushed, tolerance, plan.beta)
        # Clamped phases descend a cost of their own, whatever the network.
        aux = aux._replace(unbiased=said(False if clamped else network.conservative))
        if not clamped:
            bounded = are_bounded(network, cost, betas)
            aux = aux._replace(converged=jnp.logical_and(aux.converged, bounded))
        return (jnp.mean(cost(outputs, targets)), aux), grads

    return LearningRule(
        name,
        network.init,
        phases.outputs_of(network, free),
        value_and_grad,
        network.project,
    )
