"""Recurrent back-propagation: the adjoint of the fixed point, solved for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import linear_solvers, trees
from bilevel.energy import phases
from bilevel.energy.costs import Cost
from bilevel.energy.elementwise import is_elementwise
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.energy.networks.base import EnergyNetwork, State, keys_of, replaced
from bilevel.energy.relaxations import Relaxation
from bilevel.linear_solvers import LinearSolver
from bilevel.trees import Tree


def recurrent_back_propagation(
    network: EnergyNetwork,
    cost: Cost,
    free: Relaxation,
    linear_solver: LinearSolver | None = None,
    *,
    tolerance: float = 1e-3,
) -> LearningRule:
    """The implicit gradient of the cost at the free state.

    The state solves s = T(s), T the network's response. With the slopes of the
    activations D (T' = -D E_ss off the diagonal) the adjoint is solved for in the
    symmetric form

        (1 - D^-1/2 T' D^1/2) u = D^1/2 dC/ds

    where units at their bounds (D = 0) drop out. The matrix is positive definite at a
    minimum, hence CG; with a linear solver for any matrix it is also right where no
    energy has this response (asymmetric weights). Where a layer couples its units
    (softmax), the slopes are no numbers, and (1 - T'^T) u = dC/ds is solved as it is.

    Args:
        network: with the state.
        cost: of its outputs.
        free: solver of the state, which must converge.
        linear_solver: default `linear_solvers.cg()`; `linear_solvers.normal_cg()` where
            a layer couples its units.
        tolerance: `aux.converged` needs a free residual of at most this part of the
            state, so the estimated way that is left, and an adjoint that was solved.

    Returns:
        A `LearningRule`; `aux.nudged_residual` is that of the adjoint. Cost: the free
        phase, 2 g for each step of the linear solver (4 g of `normal_cg`).

    Raises:
        ValueError: when it is traced, a solver for symmetric matrices only where a
            layer couples its units.

    Source: Almeida 1987; Pineda 1987; Scellier and Bengio 2019, arXiv:1711.08208.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> chain = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> network = energy.networks.hopfield(chain)
        >>> settle = energy.relaxations.sweeps(100)
        >>> rule = energy.recurrent_back_propagation(
        ...     network, energy.squared_error(), settle
        ... )
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
        >>> bool(aux.converged)
        True
    """

    def value_and_grad(
        params: Tree, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        (own,) = phases.phase_keys(key, free)
        found = phases.relax_free(network, free, params, inputs, own)
        state = found.state

        def mean_cost(params: Tree, state: State) -> tuple[jax.Array, jax.Array]:
            outputs = network.outputs(params, state)
            return jnp.mean(cost(outputs, targets)), outputs

        both = jax.value_and_grad(mean_cost, argnums=(0, 1), has_aux=True)
        (value, outputs), (direct, cotangent) = both(params, state)
        solver, (root, inverse) = _scaled(
            _answer(network, params, state, inputs), state, linear_solver
        )
        _, pull = jax.vjp(lambda s: network.respond(params, s, inputs, {}, {}), state)

        def matvec(u: State) -> State:
            (back,) = pull(_times(inverse, u))
            return trees.sub(u, _times(root, back))

        u, info = solver.solve(matvec, _times(root, cotangent), None, None)
        _, pull_params = jax.vjp(
            lambda p: network.respond(p, state, inputs, {}, {}), params
        )
        (implicit,) = pull_params(_times(inverse, u))
        count = max(sum(x.size for x in jax.tree.leaves(state)), 1)
        size = trees.norm(state) / count**0.5
        settled = phases.still_left(found) <= tolerance * jnp.maximum(size, 1e-30)
        aux = Aux(
            outputs=outputs,
            state=state,
            free_residual=found.residual,
            nudged_residual=info.relative_residual,
            converged=settled & info.converged & info.positive_definite,
            free_steps=found.num_steps,
            nudged_steps=info.num_steps,
            unbiased=said(True),
        )
        return (value, aux), trees.add(direct, implicit)

    return LearningRule(
        "recurrent_back_propagation",
        network.init,
        phases.outputs_of(network, free),
        value_and_grad,
        network.project,
    )


def _answer(
    network: EnergyNetwork, params: Tree, state: State, inputs: jax.Array
) -> Callable[[State], State]:
    """The response to a force: a unit answers its own with -D."""

    def answer(force: State) -> State:
        pushes = {key: force[key] for key in keys_of(force)}
        return network.respond(params, state, inputs, pushes, {})

    return answer


def _scaled(
    answer: Callable[[State], State], state: State, given: LinearSolver | None
) -> tuple[LinearSolver, tuple[State, State]]:
    """The solver, and the scales before and behind T'."""
    if is_elementwise(answer, state):
        return given or linear_solvers.cg(), _roots(answer, state)
    if given is not None and given.needs != "general":
        raise ValueError(
            "recurrent_back_propagation: a layer of the network couples its units "
            "(softmax, say), so that the adjoint's matrix is not symmetric; expected a "
            "linear solver for any matrix: leave linear_solver out, or pass "
            "linear_solvers.normal_cg()."
        )
    ones = jax.tree.map(jnp.ones_like, state)
    return given or linear_solvers.normal_cg(), (ones, ones)


def _roots(answer: Callable[[State], State], state: State) -> tuple[State, State]:
    """D^1/2 and its inverse, 0 where D is, for an answer that is elementwise."""
    ones = jax.tree.map(jnp.ones_like, state)
    (slopes,) = jax.vjp(answer, trees.zeros_like(state))[1](ones)
    root = jax.tree.map(lambda d: jnp.sqrt(jnp.maximum(-d, 0)), slopes)
    inverse = jax.tree.map(
        lambda r: jnp.where(r > 0, 1 / jnp.where(r > 0, r, 1), 0), root
    )
    return root, inverse


def _times(a: State, b: State) -> State:
    return replaced(b, {key: a[key] * b[key] for key in keys_of(b)})
