"""BinaryConnect: straight through, with latent weights kept within the range."""

import jax
import jax.numpy as jnp

from bilevel import number_formats
from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.quantizer import At, Quantizer, rounded, with_slope
from bilevel.quantized.scales import Scale


def binary_connect(
    number_format: NumberFormat | None = None,
    *,
    stochastic: bool = False,
    scale: Scale | None = None,
) -> Quantizer:
    """Forward sgn(x); backward dx = dw; x <- clip(x, -1, 1) after each step.

    Without the clip latent weights run away from the boundary and no longer flip. With
    `stochastic`, training draws w = 1 with probability clip((x + 1) / 2, 0, 1).

    Args:
        number_format: binary by default; others round, or draw between the two levels
            next to x, and clip to their range.
        stochastic: draw in training; the final weights are rounded.
        scale: of the levels, from the weights, see `scales`; all else is in units of
            it, and it is a constant for gradients.

    Returns:
        A `Quantizer`; apply `project` after each step. Cost: one rounding.

    Raises:
        ValueError: (when applied) `stochastic` and a state without key.

    Source: Courbariaux, Bengio, David 2015, arXiv:1511.00363, algorithm 1, equation 2.

    Example:
        >>> q = binary_connect()
        >>> q.project(jnp.array([0.25, -1.5]), At(jnp.zeros((), jnp.int32))).tolist()
        [0.25, -1.0]
    """
    own = number_formats.binary() if number_format is None else number_format
    least, greatest = own.range

    def rule(u: jax.Array, at: At) -> jax.Array:
        if stochastic:
            key = require_key("binary_connect", at)
            wide = u.astype(jnp.promote_types(u.dtype, jnp.float32))
            value = number_formats.stochastic_round(own, key, wide).astype(u.dtype)
        else:
            value = rounded(own, u)
        return with_slope(value, 1.0, u)

    made = elementwise(
        "binary_connect",
        own,
        rule,
        scale,
        project=lambda u, at: jnp.clip(u, least, greatest),
    )
    return made_by(
        made, binary_connect, number_format, stochastic=stochastic, scale=scale
    )


def require_key(name: str, at: At) -> jax.Array:
    """The key of a quantiser that draws."""
    if at.key is None:
        raise ValueError(
            f"{name} draws: pass key=jax.random.key(...) to quantized.init, which "
            "keeps it in the state, or to quantized.activation."
        )
    return at.key
