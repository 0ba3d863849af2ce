"""Whether an activation is what it must be: the derivative of a convex conjugate."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.energy.activations import NAMES, Activation, by_name
from bilevel.energy.elementwise import is_elementwise
from bilevel.known import known

Function: TypeAlias = Callable[[jax.Array], jax.Array]

_SIZES = (0.3, 1.0, 3.0)  # of the points that are looked at


def require_gradient(name: str, one: Activation, like: jax.Array) -> None:
    """Raises `ValueError` for an activation that is the derivative of no potential.

    Its Jacobian must be symmetric. An elementwise one is; of one whose units are
    coupled it is looked at, at random points: softmax passes, `tanh(a @ M)` does not.

    Args:
        name: of the rule or the network that needs it.
        one: the activation.
        like: `[B, ...]`, what it is applied to; only shape and dtype are looked at.
    """
    if _is_ours(one):
        return
    example = _example(like)
    if is_elementwise(one.apply, example):
        return
    gap = _asymmetry(one.apply, example.shape, example.dtype)
    if gap is None:
        raise ValueError(
            f"{name}: the activation {one.name!r} couples the units of an example, and "
            "its function holds traced values, so that nobody can see whether it is "
            "the derivative of a potential. Make it outside of the function that is "
            "compiled or differentiated."
        )
    if not gap <= np.sqrt(np.finfo(example.dtype).eps):
        raise ValueError(
            f"{name}: the activation {one.name!r} couples the units of an example, and "
            f"its Jacobian is not symmetric (by {float(gap):.1e}), so that it is the "
            "derivative of no potential and the rule would be wrong. Softmax and layer "
            "normalisation are symmetric; a matrix belongs into a block."
        )


def require_conjugate(name: str, one: Activation, like: jax.Array) -> None:
    """Raises `ValueError` where f is not the derivative of the conjugate R*.

    It is looked at at random points, unless the activation holds traced values.

    Args:
        name: of the network that needs it.
        one: an activation with a conjugate.
        like: `[B, ...]`, what it is applied to; only shape and dtype are looked at.
    """
    if _is_ours(one) or one.conjugate is None:
        return
    example = _example(like)
    gap = _apart(one.apply, one.conjugate, example.shape, example.dtype)
    if gap is not None and not gap <= np.sqrt(np.finfo(example.dtype).eps):
        raise ValueError(
            f"{name}: the activation {one.name!r} is not the derivative of its "
            f"conjugate (they are {float(gap):.1e} apart), as f = (R*)' must be. Of "
            "softmax the conjugate is logsumexp, one number for each example."
        )


def _is_ours(one: Activation) -> bool:
    """Whether it is one of the library's, whose parts belong together."""
    return one.name in NAMES and by_name(one.name) is one


def _example(like: jax.Array) -> jax.ShapeDtypeStruct:
    """One example, in at least float32."""
    real = jnp.finfo(like.dtype).dtype
    return jax.ShapeDtypeStruct(
        (1, *like.shape[1:]), jnp.promote_types(real, jnp.float32)
    )


def _points(shape: tuple[int, ...], dtype: jnp.dtype) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(_SIZES))
    return [
        size * jax.random.normal(key, shape, dtype)
        for key, size in zip(keys, _SIZES, strict=True)
    ]


# A program asks for every layer, and wherever it traces one.
@functools.lru_cache(maxsize=16)
def _asymmetry(f: Function, shape: tuple[int, ...], dtype: jnp.dtype) -> Any:
    """|<J'u, v> - <J'v, u>| relative to both terms, or None where it is traced."""

    def at(point: jax.Array) -> jax.Array:
        _, pull = jax.vjp(f, point)
        (first,), (second,) = pull(u), pull(v)
        size = jnp.linalg.norm(first) * jnp.linalg.norm(v)
        size = size + jnp.linalg.norm(second) * jnp.linalg.norm(u)
        gap = jnp.abs(jnp.sum(first * v) - jnp.sum(second * u))
        return gap / jnp.where(size > 0, size, 1)

    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(1))
        u, v = (jax.random.normal(key, shape, dtype) for key in keys)
        return known(jnp.max(jnp.stack([at(one) for one in _points(shape, dtype)])))


@functools.lru_cache(maxsize=16)
def _apart(
    f: Function, conjugate: Function, shape: tuple[int, ...], dtype: jnp.dtype
) -> Any:
    """The largest |(R*)' - f|, or None where it is traced."""
    slope = jax.grad(lambda a: jnp.sum(conjugate(a)))
    with jax.ensure_compile_time_eval():
        gaps = [jnp.max(jnp.abs(slope(one) - f(one))) for one in _points(shape, dtype)]
        return known(jnp.max(jnp.stack(gaps)))
