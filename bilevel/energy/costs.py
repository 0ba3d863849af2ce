"""The cost of a network's output, one number for each example."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel.energy.trusted import trusted


class Cost(NamedTuple):
    """A cost C(o, y); `cost(outputs, targets)` is `value` with a look at its shape.

    Attributes:
        name: of the cost.
        value: `(outputs [B, ...], targets) -> [B]`.
        curvature: h, where C is h |o - t|^2 / 2; otherwise None.
        holomorphic: it is analytic in the outputs, and takes complex ones.
    """

    name: str
    value: Callable[[jax.Array, jax.Array], jax.Array]
    curvature: float | None = None
    holomorphic: bool = False

    def __call__(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the cost of each example, `[B]`.

        Raises:
            ValueError: `value` returns another shape: a mean, say, whose nudge would be
                another one without a word.
        """
        found = self.value(outputs, targets)
        if found.shape != outputs.shape[:1]:
            raise ValueError(
                f"the cost {self.name!r} must return one number for each example, "
                f"{outputs.shape[:1]}, got the shape {found.shape}; sum over the axes "
                "of an example, and not over examples."
            )
        return found


def require_cost(name: str, cost: Cost) -> None:
    """Raises `ValueError` for a function that is not told about as a `Cost`."""
    if not isinstance(cost, Cost):
        raise ValueError(
            f"{name}: the cost must be an energy.Cost, got {type(cost).__name__}; take "
            'squared_error(), cross_entropy(), or Cost("mine", function), whose '
            "function returns one number for each example."
        )


def squared_error() -> Cost:
    """Half the squared distance |o - y|^2 / 2.

    Targets have the shape of the outputs, or are integer labels `[B]`, which count as
    one-hot vectors; a label that is no class makes the cost NaN.

    Example:
        >>> outputs = jnp.array([[1.0, 0.0]])
        >>> squared_error().value(outputs, jnp.array([1])).tolist()
        [1.0]
    """

    def value(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        difference = outputs - _vectors("squared_error", outputs, targets)
        return jnp.sum(difference**2, axis=tuple(range(1, outputs.ndim))) / 2

    return Cost("squared_error", value, curvature=1.0, holomorphic=True)


def cross_entropy() -> Cost:
    """Soft-max cross-entropy of the outputs, -log softmax(o)_y.

    Targets are integer labels `[B]`, or probabilities of the shape of the outputs; of
    outputs `[B, ..., C]` the positions are summed. A label that is no class makes the
    cost NaN.

    Example:
        >>> outputs = jnp.zeros((1, 4))
        >>> round(float(cross_entropy().value(outputs, jnp.array([1]))[0]), 4)
        1.3863
    """

    def value(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        vectors = _vectors("cross_entropy", outputs, targets)
        if jnp.iscomplexobj(outputs):
            # The targets' sum is 1, and logsumexp is analytic.
            vectors = vectors.astype(jnp.finfo(outputs.dtype).dtype)
            total = trusted(functools.partial(jax.nn.logsumexp, axis=-1))(outputs)
            each = total - jnp.sum(outputs * vectors, -1)
        else:
            each = optax.losses.softmax_cross_entropy(outputs, vectors)
        return jnp.sum(each, axis=tuple(range(1, each.ndim)))

    return Cost("cross_entropy", value, holomorphic=True)


def _vectors(name: str, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    targets = jnp.asarray(targets)
    is_label = jnp.issubdtype(targets.dtype, jnp.integer)
    if is_label and outputs.ndim == 2 and targets.shape == outputs.shape[:1]:
        count = outputs.shape[-1]
        vectors = jax.nn.one_hot(targets, count, dtype=jnp.finfo(outputs.dtype).dtype)
        is_class = (targets >= 0) & (targets < count)
        return jnp.where(is_class[:, None], vectors, jnp.nan)
    if is_label or targets.shape != outputs.shape:
        raise ValueError(
            f"{name}: expected integer labels [B] or floats of the shape of the "
            f"outputs, {outputs.shape}, got {targets.dtype} {targets.shape}."
        )
    return targets
