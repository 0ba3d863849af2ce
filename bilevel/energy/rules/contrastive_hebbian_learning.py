"""Contrastive Hebbian learning: the outputs are clamped to the targets."""

from bilevel.energy.contrastive import contrastive
from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import LearningRule
from bilevel.energy.networks.base import EnergyNetwork
from bilevel.energy.relaxations import Relaxation
from bilevel.energy.rules.coupled_learning import require_output
from bilevel.hypergradients.stencils import one_sided


def contrastive_hebbian_learning(
    network: EnergyNetwork,
    cost: Cost,
    free: Relaxation,
    clamped: Relaxation | None = None,
    *,
    tolerance: float = 0.1,
) -> LearningRule:
    """Contrasts a phase with the outputs at the targets with the free phase.

        dE(s_clamped) - dE(s_free),     clamped at o - dC/do

    which is y for squared error; for cross-entropy o + y - softmax(o). It is
    `coupled_learning` with beta 1, one-sided, and descends the contrast of the two
    energies, not the cost.

    Args:
        network: whose outputs are one of its layers.
        cost: of the outputs.
        free: solver of the free phase.
        clamped: of the clamped phase; default `free`.
        tolerance: as in `equilibrium_propagation`.

    Returns:
        A `LearningRule`. Cost: T_free + T_clamped g.

    Raises:
        ValueError: outputs that are no layer.

    Source: Movellan 1991; Xie and Seung 2003, "Equivalence of backpropagation and
    contrastive Hebbian learning in a layered network".

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "hard_sigmoid")
        >>> rule = energy.contrastive_hebbian_learning(
        ...     energy.networks.hopfield(chain),
        ...     energy.squared_error(),
        ...     energy.relaxations.sweeps(15),
        ... )
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    name = "contrastive_hebbian_learning"
    require_output(name, network)
    return contrastive(
        name,
        network,
        cost,
        (free, clamped or free),
        one_sided(1.0),
        tolerance=tolerance,
        clamped=True,
    )
