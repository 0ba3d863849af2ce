"""Rules that contrast phases: free, then pushed side by side, then the difference."""

import jax
import jax.numpy as jnp

from bilevel.energy import phases
from bilevel.energy.analytic import require_analytic
from bilevel.energy.costs import Cost, require_cost
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.energy.networks.base import EnergyNetwork
from bilevel.energy.nudges import are_bounded
from bilevel.energy.relaxations import Relaxation
from bilevel.hypergradients import stencils
from bilevel.hypergradients.stencils import Stencil
from bilevel.trees import Tree


def contrastive(
    name: str,
    network: EnergyNetwork,
    cost: Cost,
    solvers: tuple[Relaxation, Relaxation],
    stencil: Stencil,
    *,
    tolerance: float,
    clamped: bool = False,
) -> LearningRule:
    """Assembles a rule from the nudges of its phases.

    Args:
        name: of the rule.
        network: with the energy.
        cost: of its outputs.
        solvers: of the free phase, and of the pushed ones, which start from its state.
        stencil: the nudges and their weights; where beta is traced and not positive,
            the rule is another one, and `aux.converged` False.
        tolerance: of the way that is left to the phases, relative to the response, for
            `aux.converged`.
        clamped: the outputs are held at o - beta dC/do, instead of beta C being added.

    Returns:
        A `LearningRule`; it raises `ValueError` where nudges are complex and the energy
        is not analytic.
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
        own = None if key is None else jax.random.fold_in(key, 2)
        betas = stencils.nodes(stencil, outputs.dtype, own)
        weights = stencils.weights(stencil, betas)
        if jnp.iscomplexobj(betas):
            require_analytic(name, network, cost, data, first.state)
        push = phases.relax_clamped if clamped else phases.relax_at
        pushed = push(network, second, data, first.state, cost, betas, keys[1])
        grads = phases.contrast(
            network,
            data,
            first.state if stencils.needs_free(stencil) else None,
            pushed.state,
            weights,
            cost=None if clamped else cost,
            betas=betas,
        )
        aux = phases.report(outputs, first, pushed, tolerance, stencil.beta)
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
