"""Networks of any connectivity: recurrent, with skips, asymmetric."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from bilevel.energy import activations
from bilevel.energy.activations import Activation
from bilevel.energy.feedforward import (
    Part,
    block_of,
    init_parts,
    parts_of,
    require_different,
)
from bilevel.energy.networks.base import (
    EnergyNetwork,
    Key,
    State,
    require_potential,
    responding,
    with_potentials,
)
from bilevel.trees import Tree

INPUTS = "inputs"
"""The name of the inputs as the source of an edge."""


def connected(
    shapes: Mapping[str, Sequence[int]],
    edges: Sequence[tuple[str, str, Part | Sequence[Part]]],
    output: str,
    activation: str | Activation | Mapping[str, str] = "hard_sigmoid",
    *,
    symmetric: bool = True,
) -> EnergyNetwork:
    """Layers by name, and any edges between them.

        E = sum_k R_k(s_k) - sum over edges (i -> j) of <s_j, edge(s_i)>

    so that every edge acts in both directions; an edge from a layer to itself makes it
    recurrent.

    Args:
        shapes: of each layer, without the batch.
        edges: `(source, target, layer)`, the layer as a block of `feedforward`: of
            Flax, a function without parameters, or a sequence of them (a convolution
            and a pooling, say). The source may be "inputs".
        output: the layer that is put out.
        activation: for all layers, or by name of the layer; each needs a potential.
        symmetric: with False an edge acts from source to target only: s_j =
            f(sum of edges into j), for feedback weights of their own. No energy has
            this response, and contrastive rules are then biased, as the literature has
            it (their `aux.unbiased` is False); `energy` is kept for the update of each
            edge, <s_j, edge(s_i)>.

    Returns:
        An `EnergyNetwork`; the state is a dict of layers and starts at zero, params a
        list with one tree for each edge.

    Raises:
        ValueError: an unknown layer; an activation without potential; the same layer
            object on two edges; when it is
            initialised: an edge whose output has not the shape of its target.

    Source: Scellier and Bengio 2017, arXiv:1602.05179; Scellier et al. 2018,
    arXiv:1808.04873 (asymmetric weights).

    Example:
        >>> from flax import linen
        >>> layers = {"hidden": (8,), "out": (2,)}
        >>> edges = [
        ...     ("inputs", "hidden", linen.Dense(8)),
        ...     ("hidden", "hidden", linen.Dense(8)),
        ...     ("hidden", "out", linen.Dense(2)),
        ...     ("inputs", "out", linen.Dense(2)),
        ... ]
        >>> network = connected(layers, edges, "out")
        >>> params = network.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> sorted(network.start(params, jnp.ones((3, 4))))
        ['hidden', 'out']
    """
    units = _units(shapes, activation)
    parts = [parts_of("connected", k, edge[2]) for k, edge in enumerate(edges)]
    require_different("connected", parts)
    layers = [block_of(one) for one in parts]
    for source, target, _ in edges:
        if target not in shapes or source not in {*shapes, INPUTS} or target == INPUTS:
            raise ValueError(
                f"connected: there is no edge {source!r} -> {target!r}: the layers are "
                f"{sorted(shapes)}, and {INPUTS!r} is a source only."
            )
    if output not in shapes:
        raise ValueError(f"connected: no layer {output!r} among {sorted(shapes)}.")

    def init(key: jax.Array, inputs: jax.Array) -> list[Tree]:
        found = []
        keys = jax.random.split(key, len(edges))
        for one, own, layer, (source, target, _) in zip(
            keys, parts, layers, edges, strict=True
        ):
            below = inputs[:1]
            if source != INPUTS:
                below = jnp.zeros((1, *shapes[source]), inputs.dtype)
            found.append(init_parts("connected", own, one, below))
            made = jax.eval_shape(layer, found[-1], below)
            if made.shape[1:] != tuple(shapes[target]):
                raise ValueError(
                    f"connected: the edge {source!r} -> {target!r} puts out "
                    f"{made.shape[1:]}, expected {tuple(shapes[target])}."
                )
        return found

    def start(params: Tree, inputs: jax.Array) -> State:
        dtype = jnp.result_type(inputs, *(x.dtype for x in jax.tree.leaves(params)))
        sizes = shapes.items()
        return {name: jnp.zeros((len(inputs), *one), dtype) for name, one in sizes}

    def sent(params: Tree, state: State, inputs: jax.Array) -> list[jax.Array]:
        sources = {**state, INPUTS: inputs}
        return [
            layer(own, sources[source])
            for own, layer, (source, _, _) in zip(params, layers, edges, strict=True)
        ]

    def coupling(params: Tree, state: State, inputs: jax.Array) -> jax.Array:
        total = jnp.zeros((), next(iter(state.values())).dtype)
        for (_, target, _), a in zip(edges, sent(params, state, inputs), strict=True):
            total = total - jnp.sum(state[target] * a)
        return total

    def arriving(params: Tree, state: State, inputs: jax.Array) -> State:
        """The slopes without what would go back."""
        slopes = jax.tree.map(jnp.zeros_like, state)
        for (_, target, _), a in zip(edges, sent(params, state, inputs), strict=True):
            slopes[target] = slopes[target] - a
        return slopes

    return EnergyNetwork(
        init=init,
        start=start,
        energy=with_potentials(coupling, units),
        coupling=coupling,
        respond=responding(
            "connected", units, coupling, None if symmetric else arriving
        ),
        outputs=lambda params, state: state[output],
        output_key=output,
        stiff=units[output].curvature is not None,
        output_curvature=units[output].curvature,
        holomorphic=all(one.holomorphic for one in units.values()),
        conservative=symmetric,
    )


def _units(
    shapes: Mapping[str, Sequence[int]],
    activation: str | Activation | Mapping[str, str],
) -> dict[Key, Activation]:
    by_layer = isinstance(activation, Mapping)
    if by_layer and sorted(activation) != sorted(shapes):
        raise ValueError(
            f"connected: expected an activation for each of {sorted(shapes)}, got "
            f"{sorted(activation)}."
        )
    units = {}
    for name in shapes:
        which = activation[name] if isinstance(activation, Mapping) else activation
        units[name] = activations.by_name(which)
        require_potential("connected", units[name])
    return units
