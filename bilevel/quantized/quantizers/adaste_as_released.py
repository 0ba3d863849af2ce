"""The multiplier of AdaSTE's published code, with its defects."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.number_formats import NumberFormat

LEAST_GRADIENT = 1e-3  # absolute thresholds of the published code
LEAST_WEIGHT = 1e-6
CAP = 0.5


def as_released_rule(
    number_format: NumberFormat, alpha: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`(x, rho) -> w`, binary, with the released multiplier; see `adaste`.

    Raises:
        ValueError: other levels than -1 and 1.
    """
    if not np.array_equal(number_format.levels(), [-1, 1]):
        raise ValueError(
            "adaste: as_released knows binary weights only, got the format "
            f"{number_format.name}; leave as_released out."
        )

    @jax.custom_vjp
    def weights(x: jax.Array, rho: jax.Array) -> jax.Array:
        # sgn(0) = 0, as released
        return jnp.clip((x + rho * (1 + alpha) * jnp.sign(x)) / (1 + rho), -1, 1)

    def forward(x: jax.Array, rho: jax.Array) -> tuple[jax.Array, tuple]:
        return weights(x, rho), (x, rho)

    def backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, rho = saved
        factor = jnp.where(alpha * rho >= 1, _binary(x, g), _wells(x, g, rho, alpha))
        return (factor * g).astype(x.dtype), jnp.zeros_like(rho)

    weights.defvjp(forward, backward)
    return weights


def _wells(x: jax.Array, g: jax.Array, rho: jax.Array, alpha: float) -> jax.Array:
    """While alpha rho < 1."""
    size, b = jnp.abs(x), alpha * rho
    over = (1 + rho) * jnp.maximum(size, LEAST_WEIGHT)
    same, opposite = x * g > 0, x * g < 0
    is_large = size > jnp.maximum(LEAST_WEIGHT, 1 - b)
    is_small = (size > LEAST_WEIGHT) & (size < 1 - b)
    far = jnp.clip((1 + 2 * rho + b) / over, 0, CAP)
    near = jnp.clip(
        (2 * rho * (1 + alpha) - x) / over, 0, CAP
    )  # x for |x|, as released
    plain = jnp.ones_like(x) / (1 + rho)
    factor = jnp.where(is_large & same, far, plain)
    factor = jnp.where(is_large & opposite, 0, factor)
    factor = jnp.where(is_small & same, near, factor)
    return jnp.where(jnp.abs(g) > LEAST_GRADIENT, factor, plain)


def _binary(x: jax.Array, g: jax.Array) -> jax.Array:
    """Once alpha rho >= 1."""
    size = jnp.abs(x)
    counts = (size > LEAST_GRADIENT) & (jnp.abs(g) > LEAST_GRADIENT)
    boosted = jnp.clip(1 / jnp.maximum(size, LEAST_GRADIENT), 0, CAP)
    factor = jnp.where(x * g > 0, boosted, jnp.where(x * g < 0, 0.0, 1.0))
    return jnp.where(counts, factor, 1.0)
