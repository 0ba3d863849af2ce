"""Networks that train without back-propagation, and the rules that train them.

    activations      Fenchel pairs: a unit is an argmin
    costs            of the output
    feedforward      chains of Flax layers
    networks         states that are the argmin of an energy
    relaxations      how they settle
    phases           free, nudged, and their contrast
    blockwise        rules that go backwards block by block, from their two parts
    transports       what stands in for a block's transpose
    state_solver     a network's relaxation for the core's argmin
    check_estimator  the gradient identities of a network
    diagnostics      angles, Lipschitz constants

A rule is called like `jax.value_and_grad(loss)`: `rule(params, inputs, targets, key)`.
"""

from bilevel.energy import activations as activations
from bilevel.energy import diagnostics as diagnostics
from bilevel.energy import networks as networks
from bilevel.energy import phases as phases
from bilevel.energy import relaxations as relaxations
from bilevel.energy import transports as transports
from bilevel.energy.activations import Activation as Activation
from bilevel.energy.check_estimator import (
    check_estimator as check_estimator,
)
from bilevel.energy.costs import Cost as Cost
from bilevel.energy.costs import cross_entropy as cross_entropy
from bilevel.energy.costs import squared_error as squared_error
from bilevel.energy.feedforward import Feedforward as Feedforward
from bilevel.energy.feedforward import feedforward as feedforward
from bilevel.energy.learning_rule import Aligned as Aligned
from bilevel.energy.learning_rule import Aux as Aux
from bilevel.energy.learning_rule import LearningRule as LearningRule
from bilevel.energy.networks import EnergyNetwork as EnergyNetwork
from bilevel.energy.relaxations import Relaxation as Relaxation
from bilevel.energy.rules.back_propagation import back_propagation as back_propagation
from bilevel.energy.rules.by_hypergradient import by_hypergradient as by_hypergradient
from bilevel.energy.rules.contrastive_hebbian_learning import (
    contrastive_hebbian_learning as contrastive_hebbian_learning,
)
from bilevel.energy.rules.coupled_learning import coupled_learning as coupled_learning
from bilevel.energy.rules.difference_target_propagation import (
    difference_target_propagation as difference_target_propagation,
)
from bilevel.energy.rules.direct_feedback_alignment import (
    direct_feedback_alignment as direct_feedback_alignment,
)
from bilevel.energy.rules.dual_propagation import dual_propagation as dual_propagation
from bilevel.energy.rules.equilibrium_propagation import (
    equilibrium_propagation as equilibrium_propagation,
)
from bilevel.energy.rules.feedback_alignment import (
    feedback_alignment as feedback_alignment,
)
from bilevel.energy.rules.fenchel_back_propagation import (
    fenchel_back_propagation as fenchel_back_propagation,
)
from bilevel.energy.rules.holomorphic_equilibrium_propagation import (
    holomorphic_equilibrium_propagation as holomorphic_equilibrium_propagation,
)
from bilevel.energy.rules.incremental_predictive_coding import (
    incremental_predictive_coding as incremental_predictive_coding,
)
from bilevel.energy.rules.kolen_pollack import kolen_pollack as kolen_pollack
from bilevel.energy.rules.lpom import lpom as lpom
from bilevel.energy.rules.multi_pass_dual_propagation import (
    multi_pass_dual_propagation as multi_pass_dual_propagation,
)
from bilevel.energy.rules.predictive_coding import (
    predictive_coding as predictive_coding,
)
from bilevel.energy.rules.recurrent_back_propagation import (
    recurrent_back_propagation as recurrent_back_propagation,
)
from bilevel.energy.rules.sign_symmetry import sign_symmetry as sign_symmetry
from bilevel.energy.rules.truncated_back_propagation_through_time import (
    truncated_back_propagation_through_time as truncated_back_propagation_through_time,
)
from bilevel.energy.rules.z_il import z_il as z_il
from bilevel.energy.state_solver import state_solver as state_solver

__all__ = [
    "Activation",
    "Aligned",
    "Aux",
    "Cost",
    "EnergyNetwork",
    "Feedforward",
    "LearningRule",
    "Relaxation",
    "activations",
    "back_propagation",
    "by_hypergradient",
    "check_estimator",
    "contrastive_hebbian_learning",
    "coupled_learning",
    "cross_entropy",
    "diagnostics",
    "difference_target_propagation",
    "direct_feedback_alignment",
    "dual_propagation",
    "equilibrium_propagation",
    "feedback_alignment",
    "feedforward",
    "fenchel_back_propagation",
    "holomorphic_equilibrium_propagation",
    "incremental_predictive_coding",
    "kolen_pollack",
    "lpom",
    "multi_pass_dual_propagation",
    "networks",
    "phases",
    "predictive_coding",
    "recurrent_back_propagation",
    "relaxations",
    "sign_symmetry",
    "squared_error",
    "state_solver",
    "transports",
    "truncated_back_propagation_through_time",
    "z_il",
]
