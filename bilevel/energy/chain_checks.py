"""The identities of rules that train a feed-forward chain."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from bilevel import trees
from bilevel.energy import networks, relaxations
from bilevel.energy.checks import Check, close, order
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aligned, LearningRule
from bilevel.energy.phases import Data
from bilevel.energy.rules.back_propagation import back_propagation
from bilevel.energy.rules.dual_propagation import dual_propagation
from bilevel.energy.rules.feedback_alignment import feedback_alignment
from bilevel.energy.rules.fenchel_back_propagation import fenchel_back_propagation
from bilevel.energy.rules.lpom import lpom
from bilevel.energy.rules.multi_pass_dual_propagation import multi_pass_dual_propagation
from bilevel.energy.rules.predictive_coding import predictive_coding
from bilevel.energy.rules.z_il import z_il
from bilevel.trees import Tree


def run(
    chain: Feedforward, cost: Cost, data: Data, betas: Sequence[float]
) -> list[Check]:
    """Every identity that the chain can have."""
    gradient: Callable[[LearningRule, Tree], Tree] = lambda rule, params: jax.jit(
        rule.value_and_grad
    )(params, data.inputs, data.targets, None)[1]
    exact = gradient(back_propagation(chain, cost), data.params)

    def error(grads: Tree, reference: Tree = exact) -> float:
        gap = trees.norm(trees.sub(grads, reference))
        return float(gap / max(float(trees.norm(reference)), 1e-30))

    def errors(make: Callable[[Any], LearningRule]) -> list[float]:
        grads = jax.jit(lambda beta: make(beta).value_and_grad(*data, None)[1])
        return [error(grads(beta)) for beta in betas]

    own = Aligned(data.params, data.params[1:])
    aligned = gradient(feedback_alignment(chain, cost), own).forward
    found = [
        close("feedback alignment with own weights", error(aligned), 1e-12),
    ]
    for alpha, expected in ((0.0, 1), (0.5, 2), (1.0, 1)):
        make: Any = lambda beta, alpha=alpha: dual_propagation(
            chain, cost, alpha=alpha, beta=beta
        )
        name = f"dual propagation, alpha {alpha:g}"
        found.append(order(name, betas, errors(make), expected))
    for alpha in (0.0, 1.0):
        once, often = (
            gradient(
                multi_pass_dual_propagation(
                    chain, cost, alpha=alpha, beta=0.5, num_passes=passes
                ),
                data.params,
            )
            for passes in (1, 30)
        )
        name = f"DP-transpose, alpha {alpha:g}: one sweep = 30"
        found.append(close(name, error(once, often), 1e-10))
    fenchel: Any = lambda beta: fenchel_back_propagation(chain, cost, betas=beta)
    found.append(order("Fenchel back-propagation", betas, errors(fenchel), 1))
    if chain.activation.conjugate is not None:
        lifted: Any = lambda beta: lpom(
            chain, cost, beta=beta, clamped=False, num_sweeps=200, num_inner=2
        )
        found.append(order("LPOM", betas, errors(lifted), 1))
    if len(chain.blocks) > 1:
        found += [_z_il(chain, cost, data, gradient, error)]
        settle = relaxations.sweeps(2000, order="synchronous", step_size=0.2)
        coded: Any = lambda beta: predictive_coding(chain, cost, settle, beta=beta)
        found.append(order("predictive coding", betas, errors(coded), 1))
        found.append(_forward_is_least(chain, data))
    return found


def _z_il(
    chain: Feedforward,
    cost: Cost,
    data: Data,
    gradient: Callable[[LearningRule, Tree], Tree],
    error: Callable[[Tree], float],
) -> Check:
    grads = gradient(z_il(chain, cost), data.params)
    return close("Z-IL = back-propagation", error(grads), 1e-12)


def _forward_is_least(chain: Feedforward, data: Data) -> Check:
    """The energy of predictive coding is 0 at the forward pass, and still there."""
    network = networks.predictive(chain)
    start = network.start(data.params, data.inputs)
    moved = network.respond(data.params, start, data.inputs, {}, {})
    gap = float(trees.norm(trees.sub(moved, start)))
    value = float(abs(network.energy(data.params, start, data.inputs)))
    return close("inference without labels is the forward pass", gap + value, 1e-10)
