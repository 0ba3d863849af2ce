"""Recurrent back-propagation: the adjoint of the fixed point, solved for."""

import jax
import jax.numpy as jnp

from bilevel import linear_solvers, trees
from bilevel.energy import phases
from bilevel.energy.costs import Cost
from bilevel.energy.learning_rule import Aux, LearningRule
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
    energy has this response (asymmetric weights).

    Args:
        network: with the state.
        cost: of its outputs.
        free: solver of the state, which must converge.
        linear_solver: default `linear_solvers.cg()`.
        tolerance: `aux.converged` needs a free residual of at most this part of the
            state, so the estimated way that is left, and an adjoint that was solved.

    Returns:
        A `LearningRule`; `aux.nudged_residual` is that of the adjoint. Cost: the free
        phase, 2 g for each step of the linear solver.

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
    solver = linear_solver or linear_solvers.cg()

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
        root, inverse = _roots(network, params, state, inputs)
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
            nudged_residual=info.residual_norm,
            converged=settled & info.converged & info.positive_definite,
            free_steps=found.num_steps,
            nudged_steps=info.num_steps,
        )
        return (value, aux), trees.add(direct, implicit)

    return LearningRule(
        "recurrent_back_propagation",
        network.init,
        phases.outputs_of(network, free),
        value_and_grad,
        network.project,
    )


def _roots(
    network: EnergyNetwork, params: Tree, state: State, inputs: jax.Array
) -> tuple[State, State]:
    """D^1/2 and its inverse, 0 where D is: a unit answers its own force with -D."""

    def answer(force: State) -> State:
        pushes = {key: force[key] for key in keys_of(force)}
        return network.respond(params, state, inputs, pushes, {})

    none = trees.zeros_like(state)
    ones = jax.tree.map(jnp.ones_like, state)
    slopes = jax.jvp(answer, (none,), (ones,))[1]
    root = jax.tree.map(lambda d: jnp.sqrt(jnp.maximum(-d, 0)), slopes)
    inverse = jax.tree.map(
        lambda r: jnp.where(r > 0, 1 / jnp.where(r > 0, r, 1), 0), root
    )
    return root, inverse


def _times(a: State, b: State) -> State:
    return replaced(b, {key: a[key] * b[key] for key in keys_of(b)})
