"""Feed-forward networks as chains of affine blocks with one activation between them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import linen, nnx

from bilevel.energy import activations
from bilevel.energy.activations import Activation
from bilevel.trees import Tree

Part: TypeAlias = linen.Module | Callable[[jax.Array], jax.Array]
"""A Flax layer, or a function without parameters: pooling, flattening."""

Block: TypeAlias = Callable[[Tree, jax.Array], jax.Array]
"""`(parameters of the block, state below) -> pre-activation`, affine in the state."""


Transpose: TypeAlias = Callable[[Tree, Tree, jax.Array, jax.Array], jax.Array]
"""`(parameters, weights, state below, cotangent) -> cotangent of the state`."""


class Feedforward(NamedTuple):
    """A chain: a_k = block_k(s_{k-1}), s_k = f(a_k), s_0 the inputs; the output a_L.

    Attributes:
        init: `(key, inputs [B, ...]) -> params`, a list with one tree for each block.
        apply: `(params, inputs) -> outputs`.
        pre_activations: `(params, inputs) -> [a_1, ..., a_L]`.
        blocks: the blocks, as functions.
        activation: f.
        transposes: of the blocks, each at the values of its forward pass (max-pooling
            has its maxima there) but with other weights in its layers, of the tree of
            its parameters.
    """

    init: Callable[[jax.Array, jax.Array], list[Tree]]
    apply: Callable[[list[Tree], jax.Array], jax.Array]
    pre_activations: Callable[[list[Tree], jax.Array], list[jax.Array]]
    blocks: tuple[Block, ...]
    activation: Activation
    transposes: tuple[Transpose, ...]


def feedforward(
    blocks: Sequence[Part | Sequence[Part]], activation: str | Activation = "relu"
) -> Feedforward:
    """Builds a chain from Flax (linen) layers.

    Args:
        blocks: each a layer (`linen.Dense`, `linen.Conv`), or a sequence of layers and
            of functions without parameters, applied in order. The activation stands
            between blocks; none follows the last. A block must be affine in its input
            (max-pooling is, as long as the maxima do not move). Layers of nnx come in
            by Flax's bridge, `flax.nnx.bridge.to_linen(nnx.Linear, 64, 10)`. There is
            no chance in a chain: no rule has a key for dropout. A recurrent layer is
            one block, within which every rule goes back through time.
        activation: f, by name (see `activations.by_name`) or your own.

    Returns:
        `Feedforward`; its `init` raises `ValueError` for a layer with variables that
        are not parameters, such as the averages of a batch norm.

    Raises:
        ValueError: no blocks; one that is no layer and no function; the same layer
            object in two places: weights are not shared between blocks.

    Example:
        >>> import jax.numpy as jnp
        >>> network = feedforward([linen.Dense(8), linen.Dense(2)], "tanh")
        >>> params = network.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> network.apply(params, jnp.ones((3, 4))).shape
        (3, 2)
    """
    f = activations.by_name(activation)
    if not blocks:
        raise ValueError("feedforward: expected at least one block, got none.")
    parts = [
        parts_of("feedforward", number, block) for number, block in enumerate(blocks)
    ]
    require_different("feedforward", parts)
    functions = tuple(block_of(one) for one in parts)

    def init(key: jax.Array, inputs: jax.Array) -> list[Tree]:
        params = []
        state = inputs
        for number, (some, function) in enumerate(zip(parts, functions, strict=True)):
            key, below = jax.random.split(key)
            state = state if number == 0 else f.apply(state)
            params.append(init_parts("feedforward", some, below, state))
            state = jax.eval_shape(function, params[-1], state)
            state = jax.numpy.zeros(state.shape, state.dtype)
        return params

    def pre_activations(params: list[Tree], inputs: jax.Array) -> list[jax.Array]:
        found = [functions[0](params[0], inputs)]
        for function, own in zip(functions[1:], params[1:], strict=True):
            found.append(function(own, f.apply(found[-1])))
        return found

    def apply(params: list[Tree], inputs: jax.Array) -> jax.Array:
        return pre_activations(params, inputs)[-1]

    transposes = tuple(_transpose(one) for one in parts)
    return Feedforward(init, apply, pre_activations, functions, f, transposes)


def parts_of(name: str, number: int, block: Part | Sequence[Part]) -> tuple[Part, ...]:
    """The parts of a block; `ValueError` for one that is no layer and no function."""
    parts: Any = block if isinstance(block, list | tuple) else [block]
    for one in parts:
        if isinstance(one, nnx.Module):
            raise ValueError(
                f"{name}: block {number} holds {type(one).__name__} of nnx, which "
                "keeps its parameters to itself; pass "
                f"flax.nnx.bridge.to_linen(nnx.{type(one).__name__}, ...) in its place."
            )
        if not callable(one):
            raise ValueError(
                f"{name}: block {number} holds {one!r}; expected Flax (linen) "
                "layers and functions of one array."
            )
    return tuple(parts)


def require_different(name: str, parts: Sequence[tuple[Part, ...]]) -> None:
    """Raises `ValueError` for a layer that stands in two places.

    One who means to share its weights would get two sets of them without a word.
    """
    seen: dict[int, int] = {}
    for number, some in enumerate(parts):
        for layer in some:
            if not isinstance(layer, linen.Module):
                continue
            if id(layer) in seen:
                raise ValueError(
                    f"{name}: block {number} holds the same {type(layer).__name__} "
                    f"object as block {seen[id(layer)]}, which would get parameters of "
                    "its own in each place. Weights are not shared between blocks; "
                    "where they need not be, make a layer for each place."
                )
            seen[id(layer)] = number


def init_parts(
    name: str, parts: tuple[Part, ...], key: jax.Array, state: jax.Array
) -> Tree:
    """Parameters of a block: a tree, or a list of one for each of several layers."""
    params: list[Any] = []
    for part in parts:
        if not isinstance(part, linen.Module):
            state = part(state)
            continue
        key, here = jax.random.split(key)
        found: Any = part.init_with_output(here, state)
        state, variables = found
        others = sorted(set(variables) - {"params"})
        if others:
            raise ValueError(
                f"{name}: {type(part).__name__} has variables that are no "
                f"parameters ({', '.join(others)}), which no learning rule here knows."
            )
        params.append(variables.get("params", {}))
    return params[0] if len(params) == 1 else params


def _steps(
    parts: tuple[Part, ...], params: Tree
) -> list[Callable[[jax.Array], jax.Array]]:
    """The parts as functions of the state, with their parameters."""
    num_layers = sum(isinstance(one, linen.Module) for one in parts)
    rest = [params] if num_layers == 1 else list(params)
    return [
        functools.partial(_applied, part, rest.pop(0))
        if isinstance(part, linen.Module)
        else part
        for part in parts
    ]


def _applied(layer: linen.Module, params: Tree, state: jax.Array) -> jax.Array:
    found: Any = layer.apply({"params": params}, state)
    return found


def block_of(parts: tuple[Part, ...]) -> Block:
    """The block as a function."""

    def block(params: Tree, state: jax.Array) -> jax.Array:
        for step in _steps(parts, params):
            state = step(state)
        return state

    return block


def _transpose(parts: tuple[Part, ...]) -> Transpose:
    def transpose(
        params: Tree, weights: Tree, state: jax.Array, cotangent: jax.Array
    ) -> jax.Array:
        pulls = []
        pairs = zip(_steps(parts, params), _steps(parts, weights), strict=True)
        for forward, backward in pairs:
            pulls.append(jax.vjp(backward, state)[1])
            state = forward(state)
        for pull in reversed(pulls):
            (cotangent,) = pull(cotangent)
        return cotangent

    return transpose
