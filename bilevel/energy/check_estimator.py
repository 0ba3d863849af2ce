"""Whether the gradients of a network obey the identities that they must."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.energy import chain_checks, phases, relaxations
from bilevel.energy.analytic import not_analytic
from bilevel.energy.checks import Check, close, is_a_sum, left_out, order
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.networks.base import EnergyNetwork, replaced
from bilevel.energy.relaxations import Relaxation
from bilevel.energy.rules.coupled_learning import coupled_learning
from bilevel.energy.rules.equilibrium_propagation import equilibrium_propagation
from bilevel.energy.rules.holomorphic_equilibrium_propagation import (
    holomorphic_equilibrium_propagation,
)
from bilevel.energy.rules.recurrent_back_propagation import recurrent_back_propagation
from bilevel.energy.rules.truncated_back_propagation_through_time import (
    truncated_back_propagation_through_time,
)
from bilevel.trees import Tree


class Checked(NamedTuple):
    """The identities, and whether all hold.

    Attributes:
        checks: one for each identity, in the order of the table.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every identity holds."""
        return all(one.passed for one in self.checks)

    def __str__(self) -> str:
        """The table."""
        rows = [("identity", "expected", "found", "")]
        rows += [
            (one.name, one.expected, one.found, "ok" if one.passed else "FAILED")
            for one in self.checks
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


def check_estimator(
    network: EnergyNetwork | Feedforward,
    cost: Cost,
    params: Tree,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    free: Relaxation | None = None,
    betas: Sequence[float] = (0.02, 0.01, 0.005),
    steps: Sequence[int] = (1, 2, 5),
) -> Checked:
    """Checks the gradient identities of a network, in float64.

    For an energy: that of a batch is the sum over its examples; free and nudged phases
    settle; the implicit gradient is that of
    finite differences; equilibrium propagation has the order in beta that its variant
    must have (holomorphic, too, where the network is); its one-sided estimate is the
    derivative of the value function V_b = min E + b C (Danskin), which lies within
    (V_b - V_0) / b <= C <= (V_0 - V_-b) / b; K nudged sweeps equal K steps of truncated
    back-propagation; coupled learning is the pull-back of H dC/do. The table says where
    one of them does not apply.

    For a chain: Z-IL is back-propagation; dual propagation, Fenchel back-propagation,
    LPOM and predictive coding approach it with their order; one sweep of DP-transpose
    is a fixed point of the sweeps; feedback alignment with the blocks' own weights is
    exact.

    Args:
        network: an `EnergyNetwork`, or a chain.
        cost: of its outputs.
        params: float64, small enough that the network has one state.
        inputs: `[B, ...]` float64, a few examples.
        targets: of the examples.
        free: of energies, a solver that settles to 1e-10; default 500 sweeps, which
            must be synchronous for the truncated identity.
        betas: for the slopes, within the radius of convergence.
        steps: K, for which the truncated identity is checked.

    Returns:
        `Checked`; print it for the table. A failed identity means that an energy and
        its response do not belong together (asymmetric weights), that a phase did not
        settle, that betas are too large (between two of them a unit of a piecewise
        linear activation reached its kink), or an error.

    Raises:
        ValueError: parameters or inputs that are not float64.

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> layers = [linen.Dense(3, param_dtype=float), linen.Dense(2)]
        >>> chain = energy.feedforward(layers, "tanh")
        >>> with jax.enable_x64(True):
        ...     inputs = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
        ...     params = chain.init(jax.random.key(0), inputs)
        ...     params = jax.tree.map(lambda x: jnp.asarray(x, float), params)
        ...     found = energy.check_estimator(
        ...         chain, energy.squared_error(), params, inputs, jnp.array([0, 1])
        ...     )
        >>> found.passed
        True
    """
    for leaf in [*jax.tree.leaves(params), inputs]:
        if leaf.dtype != jnp.float64:
            raise ValueError(
                "check_estimator: the identities are checked to more digits than "
                f"float32 has; expected float64, got {leaf.dtype}. Set "
                'jax.config.update("jax_enable_x64", True) and cast.'
            )
    data = phases.Data(params, inputs, targets)
    if isinstance(network, Feedforward):
        return Checked(tuple(chain_checks.run(network, cost, data, betas)))
    settle = free or relaxations.sweeps(500, order="synchronous")
    return Checked(tuple(_energy_checks(network, cost, data, settle, betas, steps)))


def _energy_checks(
    network: EnergyNetwork,
    cost: Cost,
    data: phases.Data,
    settle: Relaxation,
    betas: Sequence[float],
    steps: Sequence[int],
) -> list[Check]:
    implicit = recurrent_back_propagation(network, cost, settle)
    (value, aux), exact = jax.jit(implicit.value_and_grad)(*data, None)
    assert aux.free_residual is not None

    # One program for each rule, whatever its nudge.
    compiled: Any = lambda make: jax.jit(
        lambda beta: make(beta).value_and_grad(*data, None)
    )

    def errors(rule: Any, scale: float = 1) -> list[float]:
        return [close_to(rule(scale * beta)[1], exact) for beta in betas]

    # From where the free phase has settled it takes one sweep: less to compile.
    assert aux.state is not None
    there = network._replace(start=lambda params, inputs: aux.state)
    one = relaxations.sweeps(1, order="synchronous")
    nudge: Any = lambda nudging: compiled(
        lambda beta: equilibrium_propagation(
            there, cost, one, settle, beta=beta, nudging=nudging
        )
    )
    positive, both = nudge("positive"), nudge("centred")
    (_, pushed), centred = both(betas[0])
    assert pushed.nudged_residual is not None
    found = [
        is_a_sum(network, data, aux.state),
        close("the free phase settles: residual", float(aux.free_residual), 1e-10),
        close(
            "the nudged phases settle: residual", float(pushed.nudged_residual), 1e-10
        ),
        close(
            "implicit gradient = finite differences of the cost",
            _slope_error(_cost_at(network, cost, data, settle), data.params, exact),
            1e-5,
        ),
        order("equilibrium propagation, positive", betas, errors(positive), 1),
        order("equilibrium propagation, negative", betas, errors(nudge("negative")), 1),
        order("equilibrium propagation, centred", betas, errors(both), 2),
    ]
    says_so = network.holomorphic and cost.holomorphic
    if says_so and not not_analytic(network, cost, data, aux.state):
        circle: Any = lambda num: compiled(
            lambda beta: holomorphic_equilibrium_propagation(
                there, cost, one, settle, beta=beta, num_points=num
            )
        )
        found.append(
            order(
                "holomorphic, 4 points",
                [5 * b for b in betas],
                errors(circle(4), 5),
                4,
            )
        )
        _, two = circle(2)(betas[0])
        found.append(
            close("holomorphic, 2 points = centred", close_to(two, centred), 1e-10)
        )
    else:
        found.append(left_out("holomorphic", "the energy or the cost is not analytic"))
    pushed_by = betas[0], positive(betas[0])[1]
    found += _value_function(network, cost, data, settle, pushed_by, value)
    found += [
        close(
            f"{k} nudged sweeps = {k} steps of back-propagation",
            _transient(there, cost, data, k),
            1e-3,
        )
        for k in steps
    ]
    if network.output_key is not None and _is_free(network, data, aux.state):
        found.append(_coupled(there, cost, data, settle, betas, aux.state))
    else:
        found.append(
            left_out("coupled learning", "no entry of its own, or one at a bound")
        )
    return found


def close_to(grads: Tree, exact: Tree) -> float:
    """The relative error of a gradient."""
    size = trees.norm(exact)
    return float(trees.norm(trees.sub(grads, exact)) / jnp.where(size > 0, size, 1))


def _direction(params: Tree) -> Tree:
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)


def _slope_error(
    function: Callable[[Tree], jax.Array], params: Tree, grads: Tree
) -> float:
    """The relative error of <grads, d>, d random, against central differences."""
    direction = _direction(params)
    step = 1e-4 / float(trees.norm(direction))
    at = lambda h: function(trees.axpy(h, direction, params))
    slope = float(8 * (at(step) - at(-step)) - at(2 * step) + at(-2 * step))
    slope /= 12 * step
    return abs(float(trees.dot(grads, direction)) - slope) / max(abs(slope), 1e-30)


def _cost_at(
    network: EnergyNetwork, cost: Cost, data: phases.Data, settle: Relaxation
) -> Callable[[Tree], jax.Array]:
    def at(params: Tree) -> jax.Array:
        found = phases.relax_free(network, settle, params, data.inputs)
        return jnp.mean(cost(network.outputs(params, found.state), data.targets))

    return jax.jit(at)


def _value_function(
    network: EnergyNetwork,
    cost: Cost,
    data: phases.Data,
    settle: Relaxation,
    positive: tuple[float, Tree],
    value: jax.Array,
) -> list[Check]:
    """Danskin's equality, for a nudge and its estimate, and the bounds on the cost."""
    beta, grads = positive

    @jax.jit
    def least(params: Tree, beta: float) -> jax.Array:
        """V_beta, the mean over examples."""
        now = data._replace(params=params)
        start = network.start(params, data.inputs)
        state = phases.relax(network, settle, now, start, cost=cost, beta=beta).state
        total = phases.nudged_energy(network, cost, now, state, beta)
        return total / len(data.inputs)

    forward = lambda params: (least(params, beta) - least(params, 0.0)) / beta
    low = float(forward(data.params))
    high = float((least(data.params, 0.0) - least(data.params, -beta)) / beta)
    slack = 1e-9 * abs(float(value))
    inside = low - slack <= float(value) <= high + slack
    return [
        close(
            "Danskin: one-sided estimate = slope of (V_b - V_0) / b",
            _slope_error(forward, data.params, grads),
            1e-5,
        ),
        Check(
            "(V_b - V_0) / b <= C <= (V_0 - V_-b) / b",
            f"{float(value):.8g}",
            f"[{low:.8g}, {high:.8g}]",
            inside,
        ),
    ]


def _transient(settled: EnergyNetwork, cost: Cost, data: phases.Data, k: int) -> float:
    """Both from where the network starts, which is settled, in synchronous sweeps."""
    one = relaxations.sweeps(1, order="synchronous")
    few = relaxations.sweeps(k, order="synchronous")
    # The nudge must not be solved exactly: each sweep takes the slope at its start.
    plain = cost._replace(curvature=None)
    rule = equilibrium_propagation(settled, plain, one, few, beta=1e-5)
    other = truncated_back_propagation_through_time(
        settled, cost, num_steps=k, truncation=k
    )
    found = jax.jit(rule.value_and_grad)(*data, None)[1]
    return close_to(found, jax.jit(other.value_and_grad)(*data, None)[1])


def _is_free(network: EnergyNetwork, data: phases.Data, state: Any) -> bool:
    """Whether dE/do is zero at the free state: no output is at a bound."""
    key = network.output_key
    at = lambda o: network.energy(data.params, replaced(state, {key: o}), data.inputs)
    return bool(jnp.max(jnp.abs(jax.grad(at)(state[key]))) < 1e-6)


def _coupled(
    network: EnergyNetwork,
    cost: Cost,
    data: phases.Data,
    settle: Relaxation,
    betas: Sequence[float],
    state: Any,
) -> Check:
    """Its limit is the pull-back of H dC/do, the force that holds the outputs."""
    key = network.output_key
    slope = jax.grad(lambda o: jnp.sum(cost(o, data.targets)))(state[key])
    small = 1e-6
    held = {key: state[key] - small * slope}
    clamped = phases.relax(network, settle, data, state, held=held).state
    energy = lambda o: network.energy(
        data.params, replaced(clamped, {key: o}), data.inputs
    )
    force = -jax.grad(energy)(clamped[key]) / small
    # Its mean over examples is what a rule's gradient is.
    linear = Cost("linear", lambda o, c: jnp.sum(o * c, axis=tuple(range(1, o.ndim))))
    rule = recurrent_back_propagation(network, linear, settle)
    _, exact = jax.jit(rule.value_and_grad)(data.params, data.inputs, force, None)
    coupled: Any = lambda beta: coupled_learning(
        network, cost, settle, beta=beta, nudging="positive"
    )
    grads = jax.jit(lambda beta: coupled(beta).value_and_grad(*data, None)[1])
    errors = [close_to(grads(beta), exact) for beta in betas]
    return order("coupled learning, to the pull-back of H dC/do", betas, errors, 1)
