"""Whether a function is analytic, as far as its operations tell."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bilevel.energy.costs import Cost, require_cost
from bilevel.energy.networks.base import EnergyNetwork, State
from bilevel.energy.phases import Data
from bilevel.energy.trusted import MARK

_NOT_ANALYTIC = frozenset(
    {
        "abs",
        "argmax",
        "argmin",
        "clamp",
        "conj",
        "ge",
        "gt",
        "imag",
        "le",
        "lt",
        "max",
        "min",
        "real",
        "reduce_max",
        "reduce_min",
        "reduce_window_max",
        "reduce_window_min",
        "sign",
        "sort",
    }
)


def not_analytic(
    network: EnergyNetwork, cost: Cost, data: Data, state: State
) -> list[str]:
    """The operations of energy and cost on complex states that are not analytic.

    Their derivatives would be no complex derivatives, and a contour integral wrong
    without a word: |s|^2, for instance, or a maximum.

    Args:
        network: whose coupling and outputs are looked at.
        cost: of the outputs.
        data: parameters, inputs, targets.
        state: real; its shapes.
    """

    def lifted(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, jnp.result_type(x, jnp.complex64))

    def all_of(state: State) -> Any:
        value = cost(network.outputs(data.params, state), data.targets)
        return network.coupling(data.params, state, data.inputs), value

    return sorted(set(_offending(all_of, jax.tree.map(lifted, state))))


def require_analytic(
    name: str, network: EnergyNetwork, cost: Cost, data: Data, state: State
) -> None:
    """Raises `ValueError` where something is `not_analytic`; call it while tracing."""
    found = not_analytic(network, cost, data, state)
    if found:
        raise ValueError(
            f"{name}: the energy or the cost applies {', '.join(found)} to the state, "
            "which is not analytic. Use average in place of max-pooling, s**2 in place "
            "of |s|**2, smooth activations, and no bounds; or equilibrium_propagation."
        )


def require_holomorphic(name: str, network: EnergyNetwork, cost: Cost) -> None:
    """Raises `ValueError` for a network or cost that says it has no complex states."""
    require_cost(name, cost)
    if not (network.holomorphic and cost.holomorphic):
        raise ValueError(
            f"{name}: needs an energy and a cost that are analytic in the state: an "
            "activation such as tanh, sigmoid or shifted_sigmoid, and no maximum, "
            "absolute value or clipping."
        )


def _offending(function: Callable[..., Any], *args: Any) -> Iterator[str]:
    yield from _walk(jax.make_jaxpr(function)(*args).jaxpr)


def _walk(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        if equation.params.get("name") == MARK:
            continue
        complex_in = any(
            jnp.issubdtype(one.aval.dtype, jnp.complexfloating)
            for one in equation.invars
            if hasattr(one.aval, "dtype")
        )
        if complex_in and equation.primitive.name in _NOT_ANALYTIC:
            yield equation.primitive.name
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _walk(inner)
