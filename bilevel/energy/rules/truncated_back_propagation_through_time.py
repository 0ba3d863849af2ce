"""Truncated back-propagation through time: through the last steps of the relaxation."""

from bilevel import hypergradients
from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import LearningRule
from bilevel.energy.networks.base import EnergyNetwork
from bilevel.energy.relaxations.sweeps import Order
from bilevel.energy.rules.by_hypergradient import by_hypergradient
from bilevel.energy.state_solver import state_solver


def truncated_back_propagation_through_time(
    network: EnergyNetwork,
    cost: Cost,
    *,
    num_steps: int,
    truncation: int,
    order: Order = "synchronous",
) -> LearningRule:
    """Differentiates the cost through the last sweeps of the relaxation.

    From a state that has settled, the gradient through K synchronous sweeps is that of
    equilibrium propagation with K nudged sweeps, for beta -> 0.

    Args:
        network: with the energy.
        cost: of its outputs.
        num_steps: sweeps in all.
        truncation: K, how many of them are differentiated.
        order: of a sweep, as in `relaxations.sweeps`.

    Returns:
        A `LearningRule`. Cost: `num_steps` sweeps and 2 g for each of the last K;
        memory K states.

    Raises:
        ValueError: a truncation that is not between 1 and `num_steps`.

    Source: Laborieux et al. 2021, arXiv:2006.03824; Ernoult et al. 2019,
    arXiv:1905.13633.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> rule = energy.truncated_back_propagation_through_time(
        ...     energy.networks.hopfield(chain),
        ...     energy.squared_error(),
        ...     num_steps=30,
        ...     truncation=5,
        ... )
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    if not 1 <= truncation <= num_steps:
        raise ValueError(
            "truncated_back_propagation_through_time: truncation must lie in [1, "
            f"num_steps={num_steps}], got {truncation}."
        )
    return by_hypergradient(
        "truncated_back_propagation_through_time",
        network,
        cost,
        state_solver(network, order=order, max_steps=num_steps),
        hypergradients.truncated(truncation),
    )
