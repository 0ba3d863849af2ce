"""Networks that train without back-propagation, and the rules that train them.

    activations    Fenchel pairs: a unit is an argmin
    costs          of the output
    feedforward    chains of Flax layers
    blockwise      rules that go backwards block by block, from their two parts
    transports     what stands in for a block's transpose

A rule is called like `jax.value_and_grad(loss)`: `rule(params, inputs, targets, key)`.
"""

from bilevel.energy import activations as activations
from bilevel.energy import transports as transports
from bilevel.energy.activations import Activation as Activation
from bilevel.energy.back_propagation import back_propagation as back_propagation
from bilevel.energy.costs import Cost as Cost
from bilevel.energy.costs import cross_entropy as cross_entropy
from bilevel.energy.costs import squared_error as squared_error
from bilevel.energy.direct_feedback_alignment import (
    direct_feedback_alignment as direct_feedback_alignment,
)
from bilevel.energy.dual_propagation import dual_propagation as dual_propagation
from bilevel.energy.feedback_alignment import feedback_alignment as feedback_alignment
from bilevel.energy.feedforward import Feedforward as Feedforward
from bilevel.energy.feedforward import feedforward as feedforward
from bilevel.energy.kolen_pollack import kolen_pollack as kolen_pollack
from bilevel.energy.learning_rule import Aligned as Aligned
from bilevel.energy.learning_rule import LearningRule as LearningRule
from bilevel.energy.sign_symmetry import sign_symmetry as sign_symmetry

__all__ = [
    "Activation",
    "Aligned",
    "Cost",
    "Feedforward",
    "LearningRule",
    "activations",
    "back_propagation",
    "cross_entropy",
    "direct_feedback_alignment",
    "dual_propagation",
    "feedback_alignment",
    "feedforward",
    "kolen_pollack",
    "sign_symmetry",
    "squared_error",
    "transports",
]
