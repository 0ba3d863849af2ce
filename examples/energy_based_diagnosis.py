"""What `energy_based.py` and `compare_learning_rules.py` tell about gradients."""

from collections.abc import Callable
from typing import Any

import jax

from bilevel import energy
from bilevel.energy import diagnostics, relaxations
from examples.energy_based_rules import (
    ON_CHAINS,
    Config,
    chain_of,
    cost_of,
    network_of,
)

Diagnose = Callable[[Any, Any, jax.Array], dict[str, jax.Array]]
"""`(params, images with labels, key) -> numbers by name`."""


def reference_of(config: Config, num_inputs: int) -> energy.LearningRule:
    """The true gradient: back-propagation, through the fixed point of an energy."""
    cost = cost_of(config)
    if config.learning.rule in ON_CHAINS:
        return energy.back_propagation(chain_of(config.model), cost)
    settle = relaxations.sweeps(10 * config.learning.free_steps)
    return energy.recurrent_back_propagation(
        network_of(config, num_inputs), cost, settle
    )


def layers_of(tree: Any) -> list[Any]:
    """Parameters or their gradients as a list of layers, without feedback."""
    if isinstance(tree, energy.Aligned):
        return list(tree.forward)
    return list(tree["conductances"]) if isinstance(tree, dict) else list(tree)


def diagnosis_of(
    config: Config, rule: energy.LearningRule, num_inputs: int
) -> Diagnose:
    """Angles and cosines to the true gradient, Lipschitz constants, by layer."""
    exact = reference_of(config, num_inputs)
    is_chain = config.model.kind != "resistive"
    chain = chain_of(config.model)

    @jax.jit
    def diagnose(params: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        _, grads = rule(params, batch.inputs, batch.labels, key)
        forward = params.forward if isinstance(params, energy.Aligned) else params
        _, true = exact(forward, batch.inputs, batch.labels)
        pair = layers_of(grads), layers_of(true)
        cosines, angles = diagnostics.cosines(*pair), diagnostics.angles(*pair)
        found = {f"angle_{k + 1}": angle for k, angle in enumerate(angles)}
        found |= {f"cosine_{k + 1}": cosine for k, cosine in enumerate(cosines)}
        if is_chain:
            norms = diagnostics.lipschitz(chain, forward, batch.inputs)
            found |= {f"lipschitz_{k + 1}": norm for k, norm in enumerate(norms)}
        return found

    return diagnose
