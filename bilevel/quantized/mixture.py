"""A relaxed choice among quantisers: bit widths, posit es, as outer variables."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.number_formats.recipe import made_by
from bilevel.quantized.export import coded, size_of
from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    as_they_are,
    unchanged,
)
from bilevel.quantized.tree import State, chosen_leaves, owner, path_of
from bilevel.trees import Tree


class Mixture(NamedTuple):
    """What `mixture` learns.

    Attributes:
        logits: `[K]`, of the candidates.
        parts: what each candidate learns.
    """

    logits: jax.Array
    parts: tuple[Tree, ...]


def mixture(candidates: Sequence[Quantizer], temperature: float = 1.0) -> Quantizer:
    """w = sum_k p_k w_k, p = softmax(logits / T), w_k being candidate k's weights.

    Each quantised leaf has logits of its own: a bit width for each layer, or an es for
    each layer's posits. They are outer variables, tuned on the validation loss with a
    penalty on `expected_bytes`; then `decide` takes one candidate for each layer,
    within a budget, and training goes on with it.

    Args:
        candidates: K quantisers, all of weights in the place of the latent ones (not
            those on a simplex).
        temperature: T; the lower, the nearer to one candidate.

    Returns:
        A `Quantizer` that learns a `Mixture`, at first of equal parts. It cannot be
        exported: decide first. Cost: that of all candidates.

    Raises:
        ValueError: less than two candidates, a temperature that is not positive.

    Source: a softmax over operations: Liu et al. 2019, arXiv:1806.09055 (DARTS),
    equation 2; over bit widths: Wu et al. 2018, arXiv:1812.00090.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized import ste
        >>> q = mixture([ste(number_formats.symmetric(b)) for b in (2, 4)])
        >>> x = jnp.array([3.0])
        >>> q.quantize(x, q.learn(x), At(jnp.zeros((), jnp.int32))).tolist()
        [2.0]
    """
    candidates = tuple(candidates)
    if len(candidates) < 2:
        raise ValueError(
            f"mixture: expected two candidates or more, got {len(candidates)}."
        )
    if not temperature > 0:
        raise ValueError(f"mixture: temperature must be positive, got {temperature}.")

    def learn(weights: jax.Array) -> Mixture:
        wide = jnp.promote_types(weights.dtype, jnp.float32)
        parts = tuple(one.learn(weights) for one in candidates)
        return Mixture(jnp.zeros(len(candidates), wide), parts)

    def quantize(latent: jax.Array, learned: Mixture, at: At) -> jax.Array:
        shares = jax.nn.softmax(learned.logits / temperature).astype(latent.dtype)
        each = [
            share * one.quantize(latent, part, at)
            for share, one, part in zip(shares, candidates, learned.parts, strict=True)
        ]
        total = each[0]
        for one in each[1:]:
            total = total + one
        return total

    def encode(latent: jax.Array, learned: Mixture) -> Codes:
        raise ValueError(
            "a mixture has no codes: call quantized.decide, and final or export with "
            "the quantisers that it returns."
        )

    names = ", ".join(one.number_format.name for one in candidates)
    most = max(candidates, key=lambda one: one.number_format.bits).number_format
    # What a candidate asks of the layout of the weights, the mixture asks.
    asked = [one.per_channel for one in candidates if one.per_channel is not False]
    made = Quantizer(
        f"mixture({names})",
        most,
        as_they_are,
        learn,
        quantize,
        encode,
        unchanged,
        True if True in asked else asked[0] if asked else False,
    )
    return made_by(made, mixture, candidates, temperature)


def expected_bytes(
    candidates: Sequence[Quantizer],
    state: State,
    latent: Tree,
    temperature: float = 1.0,
) -> jax.Array:
    """sum over leaves of sum_k p_k bytes_k, and what stays: the export's size, relaxed.

    Codes are counted as packed, with the scales, offsets and levels that go with them,
    and the leaves that are not quantised. (Scales that a function of your own spreads
    over blocks of weights are counted one by one: what they are is not known here.)

    Args:
        candidates: of the mixture.
        state: of the mixture.
        latent: the latent weights.
        temperature: of the mixture.

    Returns:
        `[]`, differentiable in the logits.
    """
    leaves = chosen_leaves(state, latent)
    total = jnp.asarray(float(_size_of_others(leaves, latent)))
    for path, leaf in leaves.items():
        learned = state.learned[path]
        shares = jax.nn.softmax(learned.logits / temperature)
        each = zip(candidates, learned.parts, strict=True)
        sizes = [float(_expected(one, leaf, part)) for one, part in each]
        total = total + jnp.sum(shares * jnp.array(sizes, shares.dtype))
    return total


def _expected(one: Quantizer, leaf: jax.Array, learned: Tree) -> int:
    """The size of a leaf in bytes, by shapes alone."""
    codes = jax.eval_shape(one.encode, leaf, learned)
    floats = sum(size_of(x) for x in codes[1:] if x is not None)
    return -(-codes.codes.size * one.number_format.bits // 8) + floats


def _size_of_others(leaves: dict[str, jax.Array], latent: Tree) -> int:
    return sum(
        size_of(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(latent)
        if path_of(path) not in leaves
    )


class Decision(NamedTuple):
    """What `decide` chose.

    Attributes:
        choice: by path, the number of the candidate.
        num_bytes: of the export of all parts: codes, scales, and what stays.
        parts: `(quantizer, state)` of each candidate that is in use, to be applied one
            after the other.
    """

    choice: dict[str, int]
    num_bytes: int
    parts: tuple[tuple[Quantizer, State], ...]


def decide(
    candidates: Sequence[Quantizer],
    state: State,
    latent: Tree,
    max_bytes: float | None = None,
) -> Decision:
    """One candidate for each leaf, the likeliest choice within a budget.

        argmax over k of sum over leaves of log p_k,   size of the export <= max_bytes

    Exactly, over all choices that no other beats in both. The size is that of the file
    that `Export.save` writes, but for its header: codes, scales, offsets and levels,
    and the leaves that are not quantised. Not for use inside of jit.

    Args:
        candidates: of the mixture.
        state: of the mixture.
        latent: the latent weights.
        max_bytes: of the export; None for any size.

    Returns:
        A `Decision`.

    Raises:
        ValueError: no choice is as small as that; traced weights.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized import init, ste
        >>> each = [ste(number_formats.symmetric(b)) for b in (2, 4)]
        >>> params = {"a": jnp.ones(8), "b": jnp.ones(8)}
        >>> latent, state = init(mixture(each), params, ".")
        >>> state.learned["b"] = state.learned["b"]._replace(logits=jnp.array([0, 3.0]))
        >>> decide(each, state, latent, max_bytes=6).choice
        {'a': 0, 'b': 1}
    """
    leaves = chosen_leaves(state, latent)
    # Bytes, score, and the choice so far; none is beaten in both by another.
    first = (_size_of_others(leaves, latent), 0.0, ())
    frontier: list[tuple[int, float, tuple[int, ...]]] = [first]
    for path, leaf in leaves.items():
        learned = state.learned[path]
        scores = np.asarray(jax.nn.log_softmax(learned.logits), np.float64)
        each = zip(candidates, learned.parts, strict=True)
        sizes = [coded(one, path, leaf, part).num_bytes for one, part in each]
        grown = [
            (size + sizes[k], score + scores[k], (*choice, k))
            for size, score, choice in frontier
            for k in range(len(sizes))
        ]
        frontier, best = [], -np.inf
        for one in sorted(grown, key=lambda one: (one[0], -one[1])):
            if one[1] > best:
                best = one[1]
                frontier.append(one)
    allowed = [one for one in frontier if max_bytes is None or one[0] <= max_bytes]
    if not allowed:
        raise ValueError(
            f"decide: the smallest choice has {frontier[0][0]} bytes with its scales, "
            f"above max_bytes={max_bytes}; add a candidate of fewer bits, or one with "
            "fewer scales, or allow more."
        )
    size, _, places = allowed[-1]
    choice = dict(zip(leaves, places, strict=True))
    parts = []
    for k, one in enumerate(candidates):
        mine = {
            path: state.learned[path].parts[k]
            for path, own in choice.items()
            if own == k
        }
        if mine:
            own = state._replace(learned=mine, quantizer=owner(one))
            parts.append((one, own))
    return Decision(choice, size, tuple(parts))
