"""The response of some layers, without the work and the program text of the others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax import core

from bilevel.energy.jaxprs import is_literal
from bilevel.energy.networks.base import Key, State, keys_of, replaced
from bilevel.energy.relaxations.base import Map

Part: TypeAlias = Callable[[State, Mapping[Key, jax.Array], Sequence[Key]], State]
"""`(state, force, group) -> state`, in which the layers of the group have moved."""


def layerwise(apply: Map, state: State, force: Mapping[Key, jax.Array]) -> Part:
    """A map whose layers can be asked for one after the other.

    The map is traced once, and of its operations each group has those that it needs:
    a layer of a chain needs its two neighbours. A sweep over L layers is then O(L) work
    and O(L) program text, not O(L^2).

    Args:
        apply: the response of all layers.
        state: whose shapes it takes.
        force: likewise; the same entries in every call.
    """
    # Who debugs sees the map called, with numbers.
    if getattr(jax.config, "jax_disable_jit", False):

        def whole(
            state: State, force: Mapping[Key, jax.Array], group: Sequence[Key]
        ) -> State:
            new = apply(state, dict(force))
            moves = replaced(state, {key: key in group for key in keys_of(state)})
            return jax.tree.map(
                lambda is_moved, a, b: a if is_moved else b, moves, new, state
            )

        return whole

    # A fresh lambda: make_jaxpr caches by the identity of what it traces.
    closed = jax.make_jaxpr(lambda *args: apply(*args))(state, dict(force))

    def part(
        state: State, force: Mapping[Key, jax.Array], group: Sequence[Key]
    ) -> State:
        leaves, treedef = jax.tree.flatten(state)
        moves = replaced(state, {key: key in group for key in keys_of(state)})
        results = zip(
            jax.tree.leaves(moves),
            closed.jaxpr.outvars,
            closed.jaxpr.invars,
            strict=False,
        )
        wanted = [new if is_moved else old for is_moved, new, old in results]
        needed = _needed(closed.jaxpr, wanted)
        given = [*leaves, *jax.tree.leaves(dict(force))]
        found = core.eval_jaxpr(needed, closed.consts, *given)
        return jax.tree.unflatten(treedef, found)

    return part


def _needed(jaxpr: Any, results: list[Any]) -> Any:
    """The operations that some results need."""
    needed = {var for var in results if not is_literal(var)}
    equations = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            equations.append(equation)
            needed.update(var for var in equation.invars if not is_literal(var))
    return jaxpr.replace(eqns=equations[::-1], outvars=results)
