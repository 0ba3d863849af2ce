"""Block-coordinate sweeps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.derivatives import Oracle
from bilevel.inner_problem import InnerSolver, Parameters, StepInfo, UserFunction
from bilevel.inner_solvers.driver import check_limits
from bilevel.trees import Tree


def block_coordinate(
    blocks: Sequence[Sequence[str | int]],
    update: Callable[[jax.Array, jax.Array], jax.Array] | float,
    *,
    max_steps: int = 100,
    rtol: float | None = None,
) -> InnerSolver:
    """Updates one block of the inner variable after another, each from its gradient.

    One step is a sweep: for every block B in order, w_B <- update(w_B, dG/dw_B), the
    gradient taken at the newest values of all blocks.  With the energy of a layered
    network, |s|^2 / 2 - Phi(s) with s in [0, 1], `update = lambda s, g:
    jnp.clip(s - g, 0, 1)` minimises exactly over layers that are not connected with
    each other: the even and the odd layers are two blocks, and a sweep is a relaxation
    step of equilibrium propagation.  A nudge of either kind arrives with the gradient.

    Args:
        blocks: the top-level keys (dict) or positions (tuple, list) of `inner` in
            each block; together every one exactly once.
        update: `(leaf, gradient) -> leaf`, elementwise; its fixed points must be the
            minimisers in the block.  A number is a step size of gradient descent (it
            may be a value that is being differentiated).
        max_steps: the cap on sweeps.
        rtol: stop when a sweep moves w by at most rtol max(|w|, what the first moved).
            The reported residual is |w - T(w)|, T being the update of all leaves at
            once (for a step size, the gradient).

    Returns:
        An `InnerSolver`.  Cost: per sweep one partial gradient per block, about 1 g in
        all for a layered network.

    Raises:
        ValueError: `blocks` does not cover the inner variable exactly once.

    Source: Scellier et al. 2023, arXiv:2312.15103 (asynchronous relaxation);
    Bertsekas 1999, section 2.7.

    Example:
        >>> solver = block_coordinate(
        ...     [("odd",), ("even",)], lambda s, g: jnp.clip(s - g, 0, 1), max_steps=20
        ... )
    """
    max_steps = check_limits("block_coordinate", max_steps, rtol)
    step_size = None
    if checks.is_number(update):
        name = "block_coordinate: the step size"
        step_size = checks.positive_if_known(name, update)
    smooth = step_size is not None
    length = 1.0 if step_size is None else step_size

    def leaf_update(leaf: jax.Array, gradient: jax.Array) -> jax.Array:
        if callable(update):
            return update(leaf, gradient)
        return (leaf - length * gradient).astype(leaf.dtype)

    def entry_update(entry: Tree, gradients: Tree) -> Tree:
        return jax.tree.map(leaf_update, entry, gradients)

    def example(name: str | int, inner: Tree, outer: Tree, batch: Any) -> Any:
        del outer, batch
        _check_blocks(blocks, inner)
        return inner[name], inner[name]

    def apply(oracle: Oracle, p: Parameters, parts: dict, gradients: Any) -> dict:
        return {
            name: oracle.functions[f"update {name}"](p, part, gradients[name])
            for name, part in parts.items()
        }

    def init(oracle: Oracle, inner: Tree, parameters: Parameters) -> tuple[()]:
        del oracle, parameters
        _check_blocks(blocks, inner)
        return ()

    def residual(oracle: Oracle, inner: Tree, parameters: Parameters) -> Tree:
        gradient = oracle.gradient(inner, parameters)
        if smooth:
            return gradient
        entries = {name: inner[name] for name in _names(inner)}
        moved = apply(oracle, parameters, entries, gradient)
        return trees.sub(inner, _with(inner, moved))

    def step(
        oracle: Oracle, inner: Tree, state: tuple[()], parameters: Parameters
    ) -> tuple[Tree, tuple[()], StepInfo]:
        before = inner
        for block in blocks:
            parts = {name: inner[name] for name in block}

            def at(parts: dict, rest: Tree = inner) -> jax.Array:
                return oracle.value(_with(rest, parts), parameters)

            gradients = jax.grad(at)(parts)
            inner = _with(inner, apply(oracle, parameters, parts, gradients))
        # What the sweep moved is zero where the optimality map is, and costs nothing.
        moved = trees.norm(trees.sub(inner, before))
        moved = moved / oracle.functions["step_size"](parameters)
        scale = trees.norm(before)
        info = StepInfo(moved, scale, jnp.zeros((), bool))
        return inner, state, info

    return InnerSolver(
        init=init,
        step=step,
        optimality=residual,
        structure="positive_definite" if smooth else "general",
        max_steps=max_steps,
        rtol=rtol,
        functions=(
            UserFunction("step_size", lambda: length, lambda *_: ()),
            *(
                UserFunction(f"update {name}", entry_update, partial(example, name))
                for name in dict.fromkeys(name for block in blocks for name in block)
            ),
        ),
    )


def _with(inner: Any, parts: dict) -> Any:
    """`inner` with some of its top-level entries replaced."""
    if isinstance(inner, dict):
        return {**inner, **parts}
    entries = [parts.get(i, entry) for i, entry in enumerate(inner)]
    if hasattr(inner, "_fields"):
        return type(inner)(*entries)
    return type(inner)(entries)


def _names(inner: Any) -> list[Any]:
    return sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))


def _check_blocks(blocks: Sequence[Sequence[str | int]], inner: Tree) -> None:
    if not isinstance(inner, dict | tuple | list):
        raise ValueError(
            "block_coordinate: the inner variable must be a dict, tuple or list of "
            f"blocks at its top level, got {type(inner).__name__}."
        )
    names = _names(inner)
    listed = [name for block in blocks for name in block]
    if sorted(map(str, listed)) != sorted(map(str, names)):
        raise ValueError(
            "block_coordinate: blocks must name every top-level entry of the inner "
            f"variable exactly once: expected {names}, got {listed}."
        )
