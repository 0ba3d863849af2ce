"""Coupled learning: the outputs are clamped a little nearer to the targets."""

from typing import Literal

from bilevel.energy.contrastive import contrastive
from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import LearningRule
from bilevel.energy.networks.base import EnergyNetwork
from bilevel.energy.nudges import check_beta
from bilevel.energy.relaxations import Relaxation
from bilevel.energy.rules.equilibrium_propagation import signed


def coupled_learning(
    network: EnergyNetwork,
    cost: Cost,
    free: Relaxation,
    clamped: Relaxation | None = None,
    *,
    beta: float = 0.1,
    nudging: Literal["positive", "negative", "centred"] = "centred",
    tolerance: float = 0.1,
) -> LearningRule:
    """Contrasts a clamped phase with the free one.

    The outputs o are held at o - b dC/do (o + b (y - o) for squared error) while the
    other layers relax, to s_b; the update is

        positive   [dE(s_b) - dE(s_0)] / b
        negative   [dE(s_0) - dE(s_-b)] / b
        centred    [dE(s_b) - dE(s_-b)] / (2 b)

    For b -> 0 it is *not* the gradient of C, but that of g^T H g / 2 with g = dC/do
    held constant but for o, H = E_oo - E_oh E_hh^-1 E_ho (h the other layers) at the
    free state: the gradient weighted by the outputs' effective stiffness.

    Args:
        network: whose outputs are one of its layers.
        cost: of the outputs.
        free: solver of the free phase.
        clamped: of the clamped phases; default `free`.
        beta: b, per sample; 1 clamps a squared error's outputs to the targets.
        nudging: which clamped phases there are.
        tolerance: as in `equilibrium_propagation`.

    Returns:
        A `LearningRule`. Cost: T_free + 2 T_clamped (T_clamped unless centred) g.

    Raises:
        ValueError: beta that is not positive; outputs that are no layer.

    Source: Stern et al. 2021, arXiv:2011.03098; Scellier et al. 2023,
    arXiv:2312.15103.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "hard_sigmoid")
        >>> rule = energy.coupled_learning(
        ...     energy.networks.hopfield(chain),
        ...     energy.squared_error(),
        ...     energy.relaxations.sweeps(15),
        ... )
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    name = "coupled_learning"
    check_beta(name, beta)
    if nudging not in ("positive", "negative", "centred"):
        raise ValueError(
            f"{name}: nudging must be positive, negative or centred, got {nudging!r}."
        )
    require_output(name, network)
    return contrastive(
        name,
        network,
        cost,
        (free, clamped or free),
        signed(nudging, beta),
        tolerance=tolerance,
        clamped=True,
    )


def require_output(name: str, network: EnergyNetwork) -> None:
    """Raises `ValueError` where there is no output layer to clamp."""
    if network.output_key is None:
        raise ValueError(
            f"{name} clamps the outputs, which here are a function of the state and no "
            "layer of their own. Give the network an output layer, or nudge it with "
            "equilibrium_propagation."
        )
