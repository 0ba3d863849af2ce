"""Quantisers on trees of parameters: init, apply, final, project, advance."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.known import known
from bilevel.number_formats import NumberFormat
from bilevel.problem import stream
from bilevel.quantized.channels import channel_axes
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    Static,
    as_latent,
    decode,
)
from bilevel.trees import Tree

Where: TypeAlias = str | re.Pattern[str] | Callable[[str, jax.Array], bool]
"""A regular expression, searched for in paths like `Dense_0/kernel`, or a predicate
`(path, leaf) -> bool`."""


class State(NamedTuple):
    """What a quantiser remembers of a tree; a pytree that checkpoints.

    Attributes:
        step: `[]` int32, steps of the optimiser so far; schedules are functions of it.
        key: of all draws, or None.
        learned: by path of each quantised leaf, what is learned besides its latent
            weights: `state._replace(learned=...)` makes it an argument of a loss.
        quantizer: whose state it is, its name and format; others do not take it. None
            where nobody said, as in a state that you made yourself.
    """

    step: jax.Array
    key: jax.Array | None
    learned: dict[str, Tree]
    quantizer: Static | None = None


def init(
    quantizer: Quantizer,
    params: Tree,
    where: Where = "kernel",
    *,
    key: jax.Array | None = None,
) -> tuple[Tree, State]:
    """Latent weights in place of the chosen leaves, and the state of their quantiser.

    Args:
        quantizer: for each of the chosen leaves.
        params: of a Flax model, linen or nnx (`nnx.state(model, nnx.Param)`), or any
            tree of arrays.
        where: which leaves, a regular expression or `(path, leaf) -> bool`; the state
            keeps the choice.
        key: for random initial latent weights and for quantisers that draw.

    Returns:
        `(latent, state)`, the former in the tree of `params`.

    Raises:
        ValueError: no leaf is chosen; a chosen one is not of floats, or has values that
            are not finite; a scale for each output channel, and a leaf whose layout
            does not say which axes those are.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized import clipped_ste
        >>> params = {"kernel": jnp.array([[0.3, -2.0]]), "bias": jnp.zeros(2)}
        >>> q = clipped_ste(number_formats.binary())
        >>> latent, state = init(q, params)
        >>> apply(q, state, latent)["kernel"].tolist()
        [[1.0, -1.0]]
    """
    chosen = _chosen(params, where)
    learned, latent = {}, dict(chosen)
    for path, leaf in chosen.items():
        weights = as_latent(path, leaf)
        _require_finite(path, weights)
        channel_axes(weights, quantizer.per_channel, path)
        own = _key_of(key, path)
        latent[path] = quantizer.start(weights, own)
        learned[path] = first_learned(quantizer, weights)
    step = jnp.zeros((), jnp.int32)
    return _replaced(params, latent), State(step, key, learned, owner(quantizer))


def apply(quantizer: Quantizer, state: State, latent: Tree) -> Tree:
    """The weights of training, in the tree of `latent`.

    Derivatives with respect to `latent` and `state.learned` are the quantiser's. Leaves
    that it does not have pass through.

    Raises:
        ValueError: `latent` lacks a leaf that `init` chose, or has integers there; a
            quantiser that draws, and a state without key; the state of another
            quantiser.
    """
    require_own(quantizer, state)
    return _mapped(state, latent, quantizer.quantize)


def final(quantizer: Quantizer, state: State, latent: Tree) -> Tree:
    """The weights that are deployed: scaled levels, bit by bit those of `export`.

    Inside of a larger compiled program scales may differ by a rounding unit. For
    quantisers that come to levels only at the end of their schedule it rounds.
    """
    require_own(quantizer, state)

    def deployed(leaf: jax.Array, learned: Tree, at: At) -> jax.Array:
        del at
        codes = encoded(quantizer, leaf, learned)
        return decoded(quantizer.number_format, codes, leaf.dtype)

    return _mapped(state, latent, deployed)


@partial(jax.jit, static_argnums=0)
def first_learned(quantizer: Quantizer, weights: jax.Array) -> Tree:
    """`Quantizer.learn` as one program, compiled once for all weights of a shape."""
    return quantizer.learn(weights)


@partial(jax.jit, static_argnums=0)
def encoded(quantizer: Quantizer, leaf: jax.Array, learned: Tree) -> Codes:
    """`Quantizer.encode` as one compiled program, the same for `final` and `export`."""
    return quantizer.encode(leaf, learned)


@partial(jax.jit, static_argnums=(0, 2))
def decoded(number_format: NumberFormat | None, codes: Codes, dtype: Any) -> jax.Array:
    """`decode` as one compiled program."""
    return decode(number_format, codes, dtype)


def project(quantizer: Quantizer, state: State, latent: Tree) -> Tree:
    """Latent weights after a step of the optimiser: clipped, or moved by a prox."""
    require_own(quantizer, state)
    return _mapped(state, latent, lambda leaf, _, at: quantizer.project(leaf, at))


def advance(state: State) -> State:
    """The state after a step of the optimiser: schedules go on."""
    return state._replace(step=state.step + 1)


def labels(state: State, latent: Tree) -> Tree:
    """For each leaf "latent" or "other", for `optax.partition`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "latent" if path_of(path) in state.learned else "other", latent
    )


def owner(quantizer: Quantizer) -> Static:
    """What a state remembers of its quantiser."""
    return Static(f"{quantizer.name} with {quantizer.number_format.name}")


def require_own(quantizer: Quantizer, state: State) -> None:
    """Raises `ValueError` for the state of another quantiser, or of another format."""
    if state.quantizer not in (None, owner(quantizer)):
        raise ValueError(
            f"this is the state of {state.quantizer.value}, and not of "
            f"{owner(quantizer).value}: what one has learned the other would ignore, "
            "or take for something else. Make one by quantized.init, or pass the "
            "quantiser that it belongs to."
        )


def chosen_leaves(state: State, latent: Tree) -> dict[str, jax.Array]:
    """The leaves that `init` chose, by path."""
    leaves = _leaves(latent)
    missing = sorted(state.learned.keys() - leaves.keys())
    if missing:
        raise ValueError(
            f"the state quantises {missing}, which the latent weights lack; they must "
            "have the tree that init returned."
        )
    return {path: leaves[path] for path in sorted(state.learned)}


def path_of(keys: Any) -> str:
    """A path of jax as a string, `Dense_0/kernel`, without the `value` of nnx."""
    if keys and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _mapped(
    state: State, latent: Tree, function: Callable[[jax.Array, Tree, At], jax.Array]
) -> Tree:
    found = chosen_leaves(state, latent)
    key = state.key
    if key is not None:
        key = jax.random.fold_in(key, state.step)
    new = {}
    for path, leaf in found.items():
        own, learned = _key_of(key, path), state.learned[path]
        new[path] = function(as_latent(path, leaf), learned, At(state.step, own))
    return _replaced(latent, new)


def _key_of(key: jax.Array | None, path: str) -> jax.Array | None:
    """A key for each path: two quantisers of one tree must not draw the same."""
    if key is None:
        return None
    return stream(key, path)


def _chosen(params: Tree, where: Where) -> dict[str, jax.Array]:
    leaves = _leaves(params)
    if not (callable(where) or isinstance(where, str | re.Pattern)):
        raise ValueError(
            "where must be a regular expression, searched for in paths like "
            f"'Dense_0/kernel', or a function (path, leaf) -> bool, got {where!r}; "
            "several names are one expression, 'kernel|embedding'."
        )

    def is_chosen(path: str, leaf: jax.Array) -> bool:
        if callable(where):
            return where(path, leaf)
        return re.search(where, path) is not None

    chosen = {path: leaf for path, leaf in leaves.items() if is_chosen(path, leaf)}
    if not chosen:
        raise ValueError(
            f"where={where!r} chooses none of the leaves {sorted(leaves)}; take a part "
            "of their names, or a regular expression."
        )
    return chosen


def _leaves(tree: Tree) -> dict[str, jax.Array]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {path_of(path): leaf for path, leaf in found}
    if len(leaves) < len(found):
        twice = [
            path for path, n in Counter(path_of(p) for p, _ in found).items() if n > 1
        ]
        raise ValueError(f"several leaves have the path {twice}; rename their parts.")
    return leaves


def _replaced(tree: Tree, new: dict[str, jax.Array]) -> Tree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: new.get(path_of(path), leaf), tree
    )


def _require_finite(path: str, weights: jax.Array) -> None:
    values = known(weights)
    if values is not None and not np.all(np.isfinite(values.astype(np.float64))):
        bad = int(np.sum(~np.isfinite(values.astype(np.float64))))
        raise ValueError(
            f"{path}: {bad} of {values.size} weights are not finite, and have no level."
        )
