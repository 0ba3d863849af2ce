"""The relaxation of a network as an inner solver of the core."""

from typing import Any

from bilevel import trees
from bilevel.derivatives import Oracle
from bilevel.energy.networks.base import EnergyNetwork, State, keys_of
from bilevel.energy.relaxations.sweeps import Order, sweeps
from bilevel.inner_problem import InnerSolver, Parameters, StepInfo
from bilevel.inner_solvers.driver import check_limits
from bilevel.trees import Tree


def state_solver(
    network: EnergyNetwork,
    *,
    order: Order = "even_odd",
    max_steps: int = 100,
    rtol: float | None = None,
) -> InnerSolver:
    """Sweeps as an inner solver, so that every hypergradient trains the network.

        argmin(objective, state_solver(network), hypergradients.truncated(5))

    where the inner variable is the state, the outer one the parameters, and the batch
    the inputs. The optimality map is s - respond(s).

    Args:
        network: with the state.
        order: of a sweep, as in `relaxations.sweeps`.
        max_steps: sweeps, at most.
        rtol: stop where a sweep moves the state by at most rtol times its size.

    Returns:
        An `InnerSolver`. It sees linear nudges, not nudges with the outer function in
        full: those are `equilibrium_propagation`.

    Raises:
        ValueError: an argument out of range; when it is traced, a nudge in full.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "hard_sigmoid")
        >>> solver = state_solver(energy.networks.hopfield(chain), max_steps=30)
    """
    max_steps = check_limits("state_solver", max_steps, rtol)
    one_sweep = sweeps(1, order=order)

    def apply(oracle: Oracle, parameters: Any, state: State, force: dict) -> State:
        if oracle.tilt is not None:
            pushed = {key: oracle.tilt[key] for key in keys_of(state)}
            force = {**pushed, **{k: v + pushed[k] for k, v in force.items()}}
        return network.respond(parameters.outer, state, parameters.batch, force, {})

    def init(oracle: Oracle, inner: Tree, parameters: Parameters) -> tuple[()]:
        del inner, parameters
        if oracle.opaque:
            raise ValueError(
                "state_solver sees linear nudges only: use nudged(linearised=True), or "
                "energy.equilibrium_propagation, which nudges with the cost in full."
            )
        return ()

    def step(
        oracle: Oracle, inner: Tree, state: tuple[()], parameters: Parameters
    ) -> tuple[Tree, tuple[()], StepInfo]:
        swept = one_sweep.solve(
            lambda s, force: apply(oracle, parameters, s, force), inner, None
        )
        moved = trees.norm(trees.sub(swept.state, inner))
        info = StepInfo(moved, trees.norm(swept.state), moved < 0)
        return swept.state, state, info

    def optimality(oracle: Oracle, inner: Tree, parameters: Parameters) -> Tree:
        return trees.sub(inner, apply(oracle, parameters, inner, {}))

    return InnerSolver(
        init=init,
        step=step,
        optimality=optimality,
        structure="general",
        max_steps=max_steps,
        rtol=rtol,
    )
