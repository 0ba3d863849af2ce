"""A relaxed choice among quantisers: bit widths, posit es, as outer variables."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.quantized.quantizer import (
    At,
    Codes,
    Quantizer,
    as_they_are,
    unchanged,
)
from bilevel.quantized.tree import State, chosen_leaves
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
    return Quantizer(
        f"mixture({names})", most, as_they_are, learn, quantize, encode, unchanged
    )


def expected_bytes(
    candidates: Sequence[Quantizer],
    state: State,
    latent: Tree,
    temperature: float = 1.0,
) -> jax.Array:
    """sum over leaves of n sum_k p_k bits_k / 8: the size of all codes, relaxed.

    Args:
        candidates: of the mixture.
        state: of the mixture.
        latent: the latent weights.
        temperature: of the mixture.

    Returns:
        `[]`, differentiable in the logits.
    """
    bits = jnp.array([float(one.number_format.bits) for one in candidates])
    total = jnp.zeros(())
    for path, leaf in chosen_leaves(state, latent).items():
        shares = jax.nn.softmax(state.learned[path].logits / temperature)
        total = total + leaf.size / 8 * jnp.sum(shares * bits.astype(shares.dtype))
    return total


class Decision(NamedTuple):
    """What `decide` chose.

    Attributes:
        choice: by path, the number of the candidate.
        num_bytes: of all codes.
        parts: `(quantizer, state)` of each candidate that is in use, to be applied one
            after the other.
    """

    choice: dict[str, int]
    num_bytes: float
    parts: tuple[tuple[Quantizer, State], ...]


def decide(
    candidates: Sequence[Quantizer],
    state: State,
    latent: Tree,
    max_bytes: float | None = None,
) -> Decision:
    """One candidate for each leaf, the likeliest choice within a budget.

        argmax over k of sum over leaves of log p_k,   sum of n bits_k / 8 <= max_bytes

    Exactly, over all choices that no other beats in both. Not for use inside of jit.

    Args:
        candidates: of the mixture.
        state: of the mixture.
        latent: the latent weights.
        max_bytes: of all codes; None for any size.

    Returns:
        A `Decision`.

    Raises:
        ValueError: no choice is as small as that.

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
    bits = [one.number_format.bits for one in candidates]
    # Bytes, score, and the choice so far; none is beaten in both by another.
    frontier: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for path, leaf in leaves.items():
        scores = np.asarray(jax.nn.log_softmax(state.learned[path].logits), np.float64)
        grown = [
            (size + leaf.size * bits[k] / 8, score + scores[k], (*choice, k))
            for size, score, choice in frontier
            for k in range(len(bits))
        ]
        frontier, best = [], -np.inf
        for one in sorted(grown, key=lambda one: (one[0], -one[1])):
            if one[1] > best:
                best = one[1]
                frontier.append(one)
    allowed = [one for one in frontier if max_bytes is None or one[0] <= max_bytes]
    if not allowed:
        raise ValueError(
            f"decide: the smallest choice has {frontier[0][0]:.0f} bytes, above "
            f"max_bytes={max_bytes}; add a candidate of fewer bits, or allow more."
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
            parts.append((one, state._replace(learned=mine)))
    return Decision(choice, size, tuple(parts))
