"""Whether a block is affine in its state, as far as its operations tell."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bilevel.energy.feedforward import Block, Feedforward
from bilevel.energy.jaxprs import inner, is_literal
from bilevel.trees import Tree

_LINEAR = frozenset(
    {
        "add",
        "add_any",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "cumsum",
        "dynamic_slice",
        "expand_dims",
        "gather",
        "neg",
        "pad",
        "reduce_sum",
        "reduce_window_sum",
        "reshape",
        "rev",
        "sharding_constraint",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "sub",
        "transpose",
    }
)
# Affine as long as the maxima do not move.
_POOLING = frozenset({"reduce_max", "reduce_window_max"})
_BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul"})


def require_affine(name: str, chain: Feedforward, params: Tree, inputs: Any) -> None:
    """Raises `ValueError` for a block that is neither affine nor pooling.

    The first block is free: its input is data, and nothing goes back through it.

    Args:
        name: of the rule that needs it.
        chain: the blocks.
        params: of the chain.
        inputs: `[B, ...]`; only shapes are looked at.
    """
    found = jax.eval_shape(chain.pre_activations, params, inputs)
    blocks = list(zip(chain.blocks, params, strict=True))
    for number, (block, own) in enumerate(blocks[1:], 1):
        wrong = sorted(_offending(block, own, found[number - 1]) - _POOLING)
        if wrong:
            raise ValueError(
                f"{name}: block {number} applies {', '.join(wrong)} to its state, and "
                "is neither affine nor pooling, so that its transpose is not a part of "
                "the rule. Nonlinear functions belong between blocks, as the chain's "
                "activation."
            )


def is_affine(block: Block, params: Tree, state: Any) -> bool:
    """Whether a block is affine in its state, pooling by maxima not counted.

    Args:
        block: `(params, state) -> pre-activation`.
        params: of the block.
        state: `[B, ...]`; only its shape is looked at.
    """
    return not _offending(block, params, state)


def _offending(block: Block, params: Tree, state: Any) -> set[str]:
    jaxpr = jax.make_jaxpr(lambda s: block(params, s))(state)
    return set(_not_affine(jaxpr.jaxpr, [True]))


def _not_affine(jaxpr: Any, depends: list[bool]) -> Iterator[str]:
    """The operations that a value that depends on the state goes through wrongly."""
    pairs = zip(jaxpr.invars, depends, strict=True)
    tainted = {var for var, is_tainted in pairs if is_tainted}
    for equation in jaxpr.eqns:
        has = [_is_in(var, tainted) for var in equation.invars]
        if not any(has):
            continue
        tainted.update(equation.outvars)
        primitive = equation.primitive.name
        called = inner(equation)
        if called is not None and len(called.invars) == len(has):
            yield from _not_affine(called, has)
        elif primitive in _BILINEAR:
            if sum(has) > 1:
                yield primitive
        elif primitive == "div":
            if has[1]:
                yield primitive
        elif primitive == "select_n":
            if has[0]:
                yield primitive
        elif primitive not in _LINEAR or _is_rounded(equation):
            yield primitive


def _is_rounded(equation: Any) -> bool:
    """A conversion of floats to integers is constant but for its steps."""
    return any(
        not jnp.issubdtype(one.aval.dtype, jnp.inexact) for one in equation.outvars
    )


def _is_in(var: Any, tainted: set[Any]) -> bool:
    return not is_literal(var) and var in tainted
