"""A quantiser from its rule for one weight, in units of the scale."""

from collections.abc import Callable
from typing import Any

import jax

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.scaled import quotient
from bilevel.quantized.levels import ends_of
from bilevel.quantized.quantizer import At, Codes, Quantizer, as_they_are, nothing
from bilevel.quantized.scales import Scale, channels_of, require_scale, scale_of

Rule = Callable[[jax.Array, At], jax.Array]
"""`(u, at) -> w`, both in units of the scale."""


def elementwise(
    name: str,
    number_format: NumberFormat,
    rule: Rule,
    scale: Scale | None,
    *,
    encode: Callable[[jax.Array], jax.Array] | None = None,
    start: Callable[[jax.Array, jax.Array | None], jax.Array] = as_they_are,
    project: Rule | None = None,
) -> Quantizer:
    """w = s rule(x / s), with a scale s that is a constant for gradients.

    Args:
        name: of the quantiser.
        number_format: of the levels.
        rule: differentiable as its author means it.
        scale: s, see `scales`.
        encode: `u -> codes` of the final weights; the format's own by default.
        start: see `Quantizer`.
        project: `(u, at) -> u`, after each step of the optimiser.
    """
    require_scale(name, scale)
    ends_of(name, number_format)
    to_codes = number_format.encode if encode is None else encode

    def own_scale(latent: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(scale_of(scale, number_format, latent))

    def within(function: Rule, latent: jax.Array, at: At) -> jax.Array:
        own = own_scale(latent)
        wide = latent.astype(own.dtype)
        return (own * function(quotient(wide, own), at)).astype(latent.dtype)

    def quantize(latent: jax.Array, learned: Any, at: At) -> jax.Array:
        del learned
        return rule(latent, at) if scale is None else within(rule, latent, at)

    def encoded(latent: jax.Array, learned: Any) -> Codes:
        del learned
        own = own_scale(latent)
        codes = to_codes(quotient(latent.astype(own.dtype), own))
        return Codes(codes, None if scale is None else own)

    def projected(latent: jax.Array, at: At) -> jax.Array:
        if project is None:
            return latent
        return within(project, latent, at)

    return Quantizer(
        name,
        number_format,
        start,
        nothing,
        quantize,
        encoded,
        projected,
        channels_of(scale),
    )
