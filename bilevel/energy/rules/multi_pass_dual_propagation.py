"""Dual propagation as published: dyads that are stored, and visited many times."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.energy import diagnostics
from bilevel.energy.affine import require_affine
from bilevel.energy.blockwise import require_gradients
from bilevel.energy.costs import Cost
from bilevel.energy.feedforward import Feedforward
from bilevel.energy.learning_rule import Aux, LearningRule, said
from bilevel.energy.nudges import check_beta
from bilevel.iteration import iterate
from bilevel.trees import Tree

Order: TypeAlias = Literal[
    "backward", "forward_backward", "forward", "odd_even", "even_odd"
]
"""In which order a pass visits the layers."""

Variant: TypeAlias = Literal["transpose", "original", "relinearised", "damped"]
"""DP-transpose, or the rule of the first paper in one of three forms."""

Dyads: TypeAlias = list[tuple[jax.Array, jax.Array]]
"""(s+, s-) of the layers 1 to L."""


class Visited(NamedTuple):
    """What the visits have made.

    Attributes:
        dyads: that of the output as its distance from `top`: the difference of the two
            is then free of cancellation.
        top: a_L when the output was last visited.
    """

    dyads: Dyads
    top: jax.Array


class Schedule(NamedTuple):
    """The layers that are visited, from 0: first, in every further pass, at last."""

    first: list[int]
    further: list[int]
    last: list[int]


_NAME = "multi_pass_dual_propagation"
_POWER_ITERATIONS = 50  # as in the published code
_TOLERANCE = 0.1


def multi_pass_dual_propagation(
    network: Feedforward,
    cost: Cost,
    *,
    alpha: float = 0.5,
    beta: float = 0.1,
    order: Order = "backward",
    num_passes: int = 1,
    variant: Variant = "transpose",
) -> LearningRule:
    """Dual propagation with a schedule: layers in any order, each as often as wanted.

    Every unit of layer k is a dyad, s+ and s-, that begins at the forward state. A
    visit of the layer takes from its neighbours

        sbar_{k-1} = alpha s+_{k-1} + (1 - alpha) s-_{k-1},   a = block_k(sbar_{k-1})
        delta_{k+1} = s+_{k+1} - s-_{k+1},   r = (d block_{k+1}(sbar_k))^T delta_{k+1}

    and sets

        s+ = f(a + (1 - alpha) r),   s- = f(a - alpha r)            ("transpose")
        s+ = f(a + alpha r),         s- = f(a - (1 - alpha) r)    ("original", and
                                                                   "relinearised")
        s+ = f((a + alpha r + l s+) / (1 + l)),                     ("damped")
        s- = f((a - (1 - alpha) r + l s-) / (1 + l)),
        l = max(0, (|block_{k+1}|^2 - 1) / 2)

    The output's dyad is a_L -+ its share of beta g, so that delta_L = -beta g, with g =
    dC/da_L at the *forward* outputs, whatever the cost and the pass; "relinearised" it
    is taken anew, at the a_L of each visit. The gradient of block k is that of
    -<block_k(sbar_{k-1}), delta_k> / beta, states frozen.

    One pass "backward" is `dual_propagation`, which costs less. More of them change
    nothing of DP-transpose with alpha 0 or 1, nor where f is piecewise linear without a
    kink on the way, otherwise the gradient by O(beta^2); the original rule they make
    worse unless it is damped. Schedules imitate hardware whose units are in no order.

    The code released with the second paper runs DP-transpose, the original rule
    "relinearised", and the "damped" one.

    Args:
        network: a chain of blocks.
        cost: of its outputs.
        alpha: in [0, 1], which of the two states is nearer to the forward state.
        beta: nudge of each *sample's* cost.
        order: of one pass: "backward" [L..1]; "forward" [1..L], whose feedback comes
            down one layer a pass: it takes L passes; "forward_backward" [L..2], then
            for every further pass [1..L-1] and [L..1], and [1] at the end: of three
            layers and passes 3 2, 1 2 3 2 1, 1 2 3 2 1, 1; "odd_even" layers 1, 3, ...
            and then 2, 4, ...; "even_odd" the other way.
        num_passes: at least 1.
        variant: "transpose", the rule of the second paper; "original", that of the
            first, biased where alpha is not 1/2; "relinearised", the same with the
            gradient of the cost at every visit's own outputs (a single pass "backward"
            has the forward ones only); "damped", the original rule damped by the
            spectral norms of the blocks, by power iteration. It needs 30 passes, more
            where the norms are large. A block that pools by maxima has a norm for each
            example's forward state, and the largest of them counts.

    Returns:
        A `LearningRule`. `aux.state` has the dyads `[(s+_1, s-_1), ...]` as their last
        visits made them. From two passes on there is a residual, the last pass's
        change, and `aux.converged` holds where it is small in every layer. Cost: about
        1 g for each pass (2 g for "forward_backward"). A max-pool has its maxima where
        sbar has them (at s+ in the published code).

    Raises:
        ValueError: an argument out of range; "damped" with an activation whose
            potential is not s^2 / 2 (identity, relu, hard_sigmoid);
            when it is traced, a block that is neither affine nor pooling, or an
            activation whose Jacobian is not symmetric.

    Source: Hoier, Staudt and Zach 2023, arXiv:2302.01228 (original); Hoier and Zach
    2024, arXiv:2402.08573 (DP-transpose, schedules, damping), and the code released
    with it, Rasmuskh/dualprop_icml_2024 (orders of visits, re-linearisation).

    Example:
        >>> from flax import linen
        >>> from bilevel import energy
        >>> network = energy.feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> cost = energy.cross_entropy()
        >>> rule = multi_pass_dual_propagation(
        ...     network, cost, order="forward", num_passes=4
        ... )
        >>> inputs, labels = jnp.ones((3, 4)), jnp.array([0, 1, 1])
        >>> params = rule.init(jax.random.key(0), inputs)
        >>> (value, aux), grads = rule(params, inputs, labels)
        >>> bool(aux.converged)
        True
    """
    _check(alpha, beta, num_passes)
    _check_names(network, order, variant)
    f, blocks = network.activation.apply, network.blocks
    up, down = (1 - alpha, alpha) if variant == "transpose" else (alpha, 1 - alpha)
    schedule = _schedule(order, len(blocks))

    def mean(dyad: tuple[jax.Array, jax.Array]) -> jax.Array:
        plus, minus = dyad
        # In this form it is exactly the forward state where the two are equal.
        return minus + alpha * (plus - minus)

    def value_and_grad(
        params: list[Tree], inputs: jax.Array, targets: jax.Array, key: Any
    ) -> tuple[tuple[jax.Array, Aux], list[Tree]]:
        del key
        require_affine(_NAME, network, params, inputs)
        require_gradients(_NAME, network, params, inputs)
        *hidden, outputs = network.pre_activations(params, inputs)
        states = [f(a) for a in hidden]
        costs, slope = jax.vjp(lambda outputs: cost(outputs, targets), outputs)
        (g,) = slope(jnp.ones_like(costs))
        damping = [0.0] * len(states)
        if variant == "damped":
            pairs = zip(blocks[1:], params[1:], states, strict=True)
            damping = [_damping(*one) for one in pairs]

        def drive(states: Visited, k: int) -> jax.Array:
            return blocks[k](params[k], mean(states.dyads[k - 1]) if k > 0 else inputs)

        def nudges(a: jax.Array) -> tuple[jax.Array, jax.Array]:
            now = g
            if variant == "relinearised":
                now = jax.grad(lambda o: jnp.sum(cost(o, targets)))(a)
            return -up * beta * now, down * beta * now

        def visit(states: Visited, k: int) -> Visited:
            dyads = states.dyads
            if k == len(blocks) - 1:
                a = drive(states, k)
                return Visited([*dyads[:k], nudges(a)], a)
            above = lambda s: blocks[k + 1](params[k + 1], s)
            (r,) = jax.vjp(above, mean(dyads[k]))[1](dyads[k + 1][0] - dyads[k + 1][1])
            a, l = drive(states, k), damping[k]
            plus, minus = a + up * r, a - down * r
            if variant == "damped":
                plus = (plus + l * dyads[k][0]) / (1 + l)
                minus = (minus + l * dyads[k][1]) / (1 + l)
            new = f(plus), f(minus)
            return states._replace(dyads=[*dyads[:k], new, *dyads[k + 1 :]])

        def sweep(states: Visited, layers: list[int]) -> Visited:
            return functools.reduce(visit, layers, states)

        def step(carry: tuple[Visited, Any]) -> tuple[Visited, Any]:
            states = sweep(carry[0], schedule.further)
            return states, _rms(trees.sub(states.dyads, carry[0].dyads))

        start = [(s, s) for s in states]
        none = jnp.zeros_like(g)
        found = sweep(Visited([*start, (none, none)], outputs), schedule.first)
        unknown = jnp.zeros(len(blocks), trees.real_dtype(found.dyads))
        found, changes = iterate(step, (found, unknown), num_steps=num_passes - 1)
        dyads, top = sweep(found, schedule.last)
        deltas = [plus - minus for plus, minus in dyads]
        grads = []
        below = [inputs, *map(mean, dyads[:-1])]
        for block, own, state, delta in zip(blocks, params, below, deltas, strict=True):
            at = lambda p, block=block, state=state: block(p, state)
            grads += jax.vjp(at, own)[1](-delta / (beta * len(inputs)))
        dyads = [*dyads[:-1], (top + dyads[-1][0], top + dyads[-1][1])]
        aux = _report(outputs, dyads, changes, deltas, [*damping, 0.0])
        if num_passes == 1:  # there is no earlier pass to compare it with
            aux = aux._replace(nudged_residual=None, converged=None)
        return (jnp.mean(costs), aux), grads

    return LearningRule(_NAME, network.init, network.apply, value_and_grad)


def _check(alpha: float, beta: float, num_passes: int) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"{_NAME}: alpha must lie in [0, 1], got {alpha}.")
    check_beta(_NAME, beta)
    if not isinstance(num_passes, int) or num_passes < 1:
        raise ValueError(
            f"{_NAME}: num_passes must be an integer >= 1, got {num_passes!r}."
        )


def _check_names(network: Feedforward, order: Order, variant: Variant) -> None:
    for name, given, kind in (("order", order, Order), ("variant", variant, Variant)):
        if given not in get_args(kind):
            raise ValueError(
                f"{_NAME}: {name} must be one of {', '.join(get_args(kind))}, got "
                f"{given!r}."
            )
    if variant == "damped" and network.activation.curvature != 1:
        raise ValueError(
            f"{_NAME}: damping needs an activation with the potential s^2 / 2 "
            "(identity, relu, hard_sigmoid), got "
            f"{network.activation.name!r}."
        )


def _schedule(order: Order, num_blocks: int) -> Schedule:
    upward = list(range(num_blocks))
    backward = upward[::-1]
    odd, even = upward[::2], upward[1::2]  # the layers 1, 3, ... and 2, 4, ...
    table: dict[Order, Schedule] = {
        "backward": Schedule(backward, backward, []),
        "forward_backward": Schedule(backward[:-1], upward[:-1] + backward, [0]),
        "forward": Schedule(upward, upward, []),
        "odd_even": Schedule(odd + even, odd + even, []),
        "even_odd": Schedule(even + odd, even + odd, []),
    }
    return table[order]


def _damping(
    block: Callable[[Tree, jax.Array], jax.Array], params: Tree, state: jax.Array
) -> jax.Array:
    """max(0, (|A|^2 - 1) / 2), A the linear map of the block."""
    norm = diagnostics.block_norm(block, params, state, num_steps=_POWER_ITERATIONS)
    return jnp.maximum(0, (norm**2 - 1) / 2).astype(state.dtype)


def _report(
    outputs: jax.Array,
    dyads: Dyads,
    changes: jax.Array,
    deltas: list[jax.Array],
    damping: list[Any],
) -> Aux:
    """What the rule says about its last pass.

    A change is taken as if it had not been damped. Every layer must have settled by
    itself: feedback that has just arrived at a lower layer is small beside that of the
    upper ones, and there is more to come.
    """
    residuals = jnp.stack([(1 + l) * x for l, x in zip(damping, changes, strict=True)])
    displacements = _rms(deltas)
    sizes = jnp.array([x.size for x in deltas], residuals.dtype)
    mean = lambda x: jnp.sqrt(jnp.sum(sizes * x**2) / jnp.sum(sizes))
    return Aux(
        outputs,
        state=dyads,
        nudged_residual=mean(residuals),
        displacement=mean(displacements),
        converged=jnp.all(residuals <= _TOLERANCE * displacements),
        unbiased=said(True),
    )


def _rms(layers: list[Any]) -> jax.Array:
    """The root mean square of each layer, `[L]`."""
    count = lambda layer: sum(x.size for x in jax.tree.leaves(layer))
    return jnp.stack([trees.norm(one) / math.sqrt(count(one)) for one in layers])
