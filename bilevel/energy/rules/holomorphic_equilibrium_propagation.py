"""Holomorphic equilibrium propagation: a contour integral over complex nudges."""

from bilevel.energy.analytic import require_holomorphic
from bilevel.energy.contrastive import contrastive
from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import LearningRule
from bilevel.energy.networks.base import EnergyNetwork
from bilevel.energy.nudges import check_beta, check_negative
from bilevel.energy.relaxations import Relaxation
from bilevel.hypergradients.stencils import contour


def holomorphic_equilibrium_propagation(
    network: EnergyNetwork,
    cost: Cost,
    free: Relaxation,
    nudged: Relaxation | None = None,
    *,
    beta: float = 0.4,
    num_points: int = 4,
    tolerance: float = 0.1,
) -> LearningRule:
    """The gradient by Cauchy's formula from N nudges on a circle.

        Re sum over k < N of exp(-2 pi i k / N) d(E + b_k C)(s_k) / (N beta)
        b_k = beta exp(2 pi i k / N)

    The error is O(beta^N) within the radius of convergence, so that beta can be large
    where the states are noisy. N = 2 is centred equilibrium propagation. States at
    conjugate nudges are conjugate, so that N // 2 + 1 phases are relaxed, side by side.

    Args:
        network: with a holomorphic energy: tanh, sigmoid, shifted_sigmoid.
        cost: of its outputs.
        free: solver of the free phase.
        nudged: of the nudged phases; default `free`.
        beta: radius of the circle, per sample.
        num_points: N, at least 2; the nudge -beta is a point where N is even.
        tolerance: as in `equilibrium_propagation`.

    Returns:
        A `LearningRule`. Cost: T_free + 4 (N // 2 + 1) T_nudged sweeps of real numbers.

    Raises:
        ValueError: a network or cost that is not holomorphic, or (when it is traced)
            an operation in the energy that is not analytic; beta not positive; N
            below 2; a circle that reaches the pole of the output.

    Source: Laborieux and Zenke 2022, arXiv:2209.00530, equation 8.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> network = energy.networks.hopfield(chain)
        >>> rule = energy.holomorphic_equilibrium_propagation(
        ...     network, energy.squared_error(), energy.relaxations.sweeps(40)
        ... )
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
    """
    name = "holomorphic_equilibrium_propagation"
    require_holomorphic(name, network, cost)
    check_beta(name, beta)
    check_negative(name, network, cost, beta)
    return contrastive(
        name,
        network,
        cost,
        (free, nudged or free),
        contour(beta, num_points),
        tolerance=tolerance,
    )
