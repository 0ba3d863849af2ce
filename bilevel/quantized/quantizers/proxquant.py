"""ProxQuant: real weights, moved towards the levels by a prox after each step."""

from typing import Literal

import jax

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized import energies
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.levels import levels_of
from bilevel.quantized.quantizer import At, Quantizer, Schedule, value_at
from bilevel.quantized.scales import Scale


def proxquant(
    number_format: NumberFormat,
    strength: Schedule,
    *,
    form: Literal["l1", "l2"] = "l1",
    scale: Scale | None = None,
) -> Quantizer:
    """x <- argmin over w of (w - x)^2 / 2 + lambda R(w) after each optimiser step.

        l1   R = dist(w, L):      q + sgn(x - q) max(|x - q| - lambda, 0)
        l2   R = dist(w, L)^2/2:  (x + lambda q) / (1 + lambda)

    with q the level nearest to x. The network sees x itself, and its gradient is the
    plain one: the argmin stands in the projection, apply `project` after each step.
    With l1 weights come to stay at levels once lambda exceeds what a step moves.

    Args:
        number_format: L; without scale, at most 16 bits.
        strength: lambda, a schedule as a rule. Published: the learning rate times 1e-4
            times the number of the epoch, from weights of a trained network, with Adam
            of 0.01; after two thirds of the epochs weights are rounded and frozen.
        form: l1 is published for binary, l2 for ternary weights.
        scale: of the levels, from the weights, see `scales`; all else is in units of
            it, and it is a constant for gradients.

    Returns:
        A `Quantizer`. Cost: one prox for a step.

    Raises:
        ValueError: a constant strength that is negative, a form that is none, a format
            whose levels are not listed.

    Source: Bai, Wang, Liberty 2019, arXiv:1810.00861, algorithm 1, equations 8 and 11.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevel import number_formats
        >>> q = proxquant(number_formats.binary(), 0.25)
        >>> at = At(jnp.zeros((), jnp.int32))
        >>> q.project(jnp.array([0.5, 0.9, -2.0]), at).tolist()
        [0.75, 1.0, -1.75]
    """
    if form not in ("l1", "l2"):
        raise ValueError(f'proxquant: form must be "l1" or "l2", got {form!r}.')
    if not callable(strength) and not strength >= 0:
        raise ValueError(f"proxquant: strength must not be negative, got {strength}.")
    levels = levels_of(number_format)
    energy = energies.distance(levels, form)

    def prox(u: jax.Array, at: At) -> jax.Array:
        return energy.minimiser(u, value_at(strength, at.step).astype(u.dtype))

    made = elementwise(
        "proxquant",
        number_format,
        lambda u, at: u,
        scale,
        encode=lambda u: number_format.encode(levels.nearest(u)),
        project=prox,
    )
    return made_by(made, proxquant, number_format, strength, form=form, scale=scale)
