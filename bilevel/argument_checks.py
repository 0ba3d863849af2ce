"""What users pass to `argmin` and its kin: checked, and turned into arrays."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.problem import Objective
from bilevel.trees import Tree


def checked_inner(inner0: Tree) -> Tree:
    """The initial inner variable as arrays; raises `ValueError` unless it is floats."""
    trees.require_float(inner0, "inner")
    if not jax.tree.leaves(inner0):
        raise ValueError("the inner variable has no leaves: nothing to minimise over.")
    return trees.as_arrays(inner0)


def batch_arrays(batch: Any) -> Any:
    """NumPy arrays and Python numbers become arrays; typed keys pass as they are."""
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), batch
    )


def default_rtol(rtol: float | None, inner: Tree) -> float:
    """What a gradient is promised: 1e-4 where w is all float64, otherwise 1e-2."""
    if rtol is not None:
        return rtol
    doubles = all(x.dtype == jnp.float64 for x in jax.tree.leaves(inner))
    return 1e-4 if doubles else 1e-2


def check_settings(rtol: float | None, on_untrustworthy: str) -> None:
    """Raises `ValueError` for settings out of range."""
    if rtol is not None and not 0 < rtol < 1:
        raise ValueError(f"rtol must lie in (0, 1), got {rtol}.")
    if on_untrustworthy not in ("warn", "nan", "ignore"):
        raise ValueError(
            'on_untrustworthy must be "warn", "nan" or "ignore", got '
            f"{on_untrustworthy!r}."
        )


def check_objective(
    objective: Objective, arguments: tuple[Any, ...], has_aux: bool, name: str
) -> None:
    """Raises `ValueError` unless an objective returns a scalar, with aux if it says so.

    Args:
        objective: of the user's.
        arguments: values or shapes.
        has_aux: it was said to return `(scalar, aux)`.
        name: "inner" or "outer".
    """
    out = jax.eval_shape(lambda *args: objective(*args), *arguments)
    what = f"the {name} objective"
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(
                f"{what} must return (scalar, aux), since has_aux was set; got "
                f"{jax.tree.structure(out)}."
            )
        out = out[0]
    elif isinstance(out, tuple):
        raise ValueError(
            f"{what} must return a scalar, got a tuple of {len(out)}. If it returns "
            "(scalar, aux), say so: has_aux=True in argmin, inner_has_aux or "
            "outer_has_aux in Problem."
        )
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or leaves[0].shape != ():
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(
            f"{what} must return a scalar (shape ()), got shapes {shapes}. Reduce it, "
            "for instance with jnp.mean."
        )
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise ValueError(
            f"{what} must return a floating-point scalar, got {leaves[0].dtype}."
        )
