"""Equilibrium propagation: the gradient from a state that is nudged a little."""

from typing import Literal, TypeAlias, get_args

import jax

from bilevel.energy.contrastive import contrastive
from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import LearningRule
from bilevel.energy.networks.base import EnergyNetwork
from bilevel.energy.nudges import check_beta, check_negative
from bilevel.energy.relaxations import Relaxation
from bilevel.hypergradients import stencils
from bilevel.hypergradients.stencils import Stencil

Nudging: TypeAlias = Literal["positive", "negative", "random", "centred"]
"""Which nudged phases there are: beta, -beta, one of the two by chance, or both."""


def equilibrium_propagation(
    network: EnergyNetwork,
    cost: Cost,
    free: Relaxation,
    nudged: Relaxation | None = None,
    *,
    beta: float = 0.1,
    nudging: Nudging = "centred",
    tolerance: float = 0.1,
) -> LearningRule:
    """Contrasts the energy's derivative at nudged and free states.

    With s_b = argmin of E + b C, started from the free state s_0,

        positive   [d(E + bC)(s_b) - dE(s_0)] / b                   error O(b)
        negative   [dE(s_0) - d(E - bC)(s_-b)] / b                  error O(b)
        centred    [d(E + bC)(s_b) - d(E - bC)(s_-b)] / (2 b)       error O(b^2)

    d the derivative in the parameters with the states held. "random" draws one of the
    first two for each batch: centred in the mean, at the price of one phase. It is the
    core's `hypergradients.nudged(linearised=False, normalise=False)`, with a budget for
    each phase, noise, and both signs side by side.

    Args:
        network: with the energy E.
        cost: C, of its outputs.
        free: solver of the free phase.
        nudged: of the nudged phases; default `free`. K synchronous sweeps from a free
            fixed point give the gradient of K steps of back-propagation through time,
            for beta -> 0: the phase need not converge.
        beta: nudge of each sample's cost.
        nudging: see above.
        tolerance: `aux.converged` holds where the way that is left to all phases, as
            their last residuals tell it, is at most this part of the nudge's
            response. Not so for few sweeps on purpose.

    Returns:
        A `LearningRule`. Cost: T_free + 2 T_nudged (T_nudged unless centred) sweeps of
        about 1 g each. In float32 take beta at least 1e-3.

    Raises:
        ValueError: beta that is not positive and finite; a negative nudge under which
            the output by itself has no minimum. Where the whole has none the nudged
            phase runs away, and `aux.converged` is False.

    Source: Scellier and Bengio 2017, arXiv:1602.05179 (positive, random); Laborieux et
    al. 2021, arXiv:2006.03824 (centred); Scellier et al. 2023, arXiv:2312.15103
    (negative); Ernoult et al. 2019, arXiv:1905.13633 (K steps).

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "hard_sigmoid")
        >>> network = energy.networks.hopfield(chain)
        >>> settle = energy.relaxations.sweeps(15)
        >>> rule = energy.equilibrium_propagation(
        ...     network, energy.squared_error(), settle, beta=0.5
        ... )
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
        >>> bool(aux.converged)
        True
    """
    name = "equilibrium_propagation"
    if nudging not in get_args(Nudging):
        raise ValueError(
            f"{name}: nudging must be one of {', '.join(get_args(Nudging))}, got "
            f"{nudging!r}."
        )
    check_beta(name, beta)
    if nudging != "positive":
        check_negative(name, network, cost, beta)

    return contrastive(
        name,
        network,
        cost,
        (free, nudged or free),
        signed(nudging, beta),
        tolerance=tolerance,
    )


def signed(nudging: Nudging, beta: float | jax.Array) -> Stencil:
    """The stencil of a name; its beta stays positive."""
    if nudging == "centred":
        return stencils.centred(beta)
    if nudging == "random":
        return stencils.random_sign(beta)
    stencil = stencils.one_sided(beta)
    return stencil if nudging == "positive" else stencil._replace(points=(-1.0,))
