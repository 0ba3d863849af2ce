"""AdaSTE: wells around the levels, and a nudge that just crosses the next boundary."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.number_formats import NumberFormat
from bilevel.number_formats.recipe import made_by
from bilevel.quantized import energies
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.levels import Levels, levels_of
from bilevel.quantized.nudged_argmin import nudged_argmin
from bilevel.quantized.quantizer import At, Quantizer, Schedule, positive, value_at
from bilevel.quantized.quantizers.adaste_as_released import as_released_rule
from bilevel.quantized.scales import Scale


def adaste(
    number_format: NumberFormat,
    rho: Schedule = 100.0,
    *,
    alpha: float = 0.01,
    floor: float = 0.5,
    centred: bool = False,
    scale: Scale | None = None,
    as_released: bool = False,
) -> Quantizer:
    """w = argmin of (w - x)^2 / 2 + rho / 2 (dist(w, L) + alpha)^2, w within the range.

    With q the level nearest to x, r = x - q and b = alpha rho it is

        w = s(x) = q + sgn(r) max(|r| - b, 0) / (1 + rho),   the end level beyond

    exactly a level once b is at least half of the widest gap. For L = {-1, 1} the
    energy is the published (w - x)^2 / 2 + (rho / 2) (|w| - 1 - alpha)^2 on [-1, 1],
    and w = sgn(x) for b >= 1; other level sets are an extension of ours.

    The pull-back is that of a nudge of each weight's own. Where the gradient g pushes x
    towards a boundary between two levels, the nudge beta g just crosses it:

        h = [s(x) - s(x - beta g)] / beta,   beta |g| = distance to the boundary

    for binary weights in the end 2 g / |x|; where there is no boundary on that side
    (x < 0 < g, say), beta -> 0 and h = s'(x) g. In the paper's notation x is the latent
    weight, rho the strength of the wells, beta the nudge.

    So a latent weight goes to the boundary readily and leaves it hardly, in the end not
    at all: the noise of a small batch, whichever way it points, drives it there, and
    then flips it. `centred=True`, an extension of ours, nudges to both sides,

        h = [s(x + beta g) - s(x - beta g)] / (2 beta),   beta |g| = distance to the
                                                          nearest boundary

    for binary weights in the end g / |x|. That is linear in g, so noise averages out.
    (Midway between two boundaries both nudges cross one, and h is twice as large.)

    Args:
        number_format: L; without scale, at most 16 bits.
        rho: the strength of the wells, or a schedule of it. Published: from 0.01 times
            1.05 each epoch up to 1 / alpha, `optax.exponential_decay(0.01,
            steps_per_epoch, 1.05, staircase=True, end_value=1 / alpha)`, which takes
            189 epochs; scale it to the length of your training, so that it ends at
            1 / alpha or more.
        alpha: by how much the wells' bottoms overshoot the levels.
        floor: the least length of a nudge, as a part of half the gap that it crosses: h
            is at most 2 / floor times g for binary weights, centred 1 / floor. 0 for
            the plain rule.
        centred: nudge to both sides; advised for small batches. Without it they need a
            mean of g over thousands of steps (examples/guide/quantized.md).
        scale: of the levels, from the weights, see `scales`; all else is in units of
            it, and it is a constant for gradients.
        as_released: the published code's multiplier of g instead, without floor, binary
            weights only. Known defects, absent from the clean form: a sign error
            freezes positive weights that want to shrink; absolute thresholds on g,
            which a mean over a batch makes tiny, so that most weights get g / (1 + rho)
            and in the end g itself; the cap of 1/2 lies below 1 / (1 + rho) while rho
            < 1, so that weights that should be boosted are damped. (Its optimiser is
            `optax.chain(optax.scale(n**2), optax.add_decayed_weights(1.0),
            optax.ema(mu), optax.scale(-lr))` with n = 10 times the number of training
            examples, the loss a mean; it ran the model a second time at sgn(x) in each
            step, for its running statistics.)

    Returns:
        A `Quantizer`. Cost: s twice (centred: three times) and its derivative once.

    Raises:
        ValueError: rho or alpha that are not positive, a floor out of [0, 1], a format
            whose levels are not listed; as_released for others than binary weights, or
            with centred.

    Source: Le, Hoier, Lin, Zach 2022, arXiv:2112.02880, equations 8 to 12, algorithm 1;
    as_released: github.com/intellhave/AdaSTE, FenBPOpt.

    Example:
        >>> from bilevel import number_formats
        >>> q = adaste(number_formats.binary(), rho=4.0, alpha=0.1)
        >>> at = At(jnp.zeros((), jnp.int32))
        >>> weights = lambda x: q.quantize(x, (), at)
        >>> x = jnp.array([0.6, 2.0])
        >>> weights(x).tolist()
        [1.0, 1.0]
        >>> pulled = jax.vjp(weights, x)[1](jnp.ones(2))[0]
        >>> [round(float(h), 2) for h in pulled]
        [3.13, 0.94]
    """
    positive("adaste: rho", rho)
    positive("adaste: alpha", alpha)
    if not 0 <= floor <= 1:
        raise ValueError(f"adaste: floor must lie in [0, 1], got {floor}.")
    if as_released and centred:
        raise ValueError("adaste: as_released has no nudges; leave centred out.")
    levels = levels_of(number_format)

    def tilt(x: jax.Array, _: jax.Array, g: jax.Array) -> jax.Array:
        if centred:
            return straddling(levels, x, floor)
        return crossing(levels, x, g, floor)

    if as_released:
        weights = as_released_rule(number_format, alpha)
    else:
        weights = nudged_argmin(
            energies.well(levels, alpha),
            tilt,
            centred=centred,
        )

    def rule(u: jax.Array, at: At) -> jax.Array:
        return weights(u, value_at(rho, at.step).astype(u.dtype))

    made = elementwise(
        "adaste_as_released" if as_released else "adaste",
        number_format,
        rule,
        scale,
        encode=lambda u: number_format.encode(levels.nearest(u)),
    )
    return made_by(
        made,
        adaste,
        number_format,
        rho,
        alpha=alpha,
        floor=floor,
        centred=centred,
        scale=scale,
        as_released=as_released,
    )


def crossing(levels: Levels, x: jax.Array, g: jax.Array, floor: float) -> jax.Array:
    """The tilt t that takes x - t just past the next boundary; 0 if there is none."""
    below, above = around(levels)
    half = np.diff(levels.values) / 2
    # At the ends, where there is no boundary, it is not used.
    half_below, half_above = np.append(half[0], half), np.append(half, half[-1])
    goes_down = g > 0

    def chosen(down: np.ndarray, up: np.ndarray) -> jax.Array:
        down_here, up_here = levels.of_cell(x, down), levels.of_cell(x, up)
        return jnp.where(goes_down, down_here, up_here)

    boundary = chosen(below, above)
    half_gap = chosen(half_below, half_above)
    distance = jnp.abs(x - boundary)
    # Rounding must not leave it on this side.
    slack = 4 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x), jnp.abs(boundary))
    length = jnp.maximum(distance + slack, floor * half_gap)
    crosses = jnp.isfinite(distance) & (g != 0)
    return jnp.where(crosses, jnp.where(goes_down, length, -length), 0)


def straddling(levels: Levels, x: jax.Array, floor: float) -> jax.Array:
    """The tilt t that takes x - t just past the nearest boundary, up or down."""
    below, above = (levels.of_cell(x, ends) for ends in around(levels))
    direction = jnp.where(x - below <= above - x, 1, -1)
    return crossing(levels, x, direction.astype(x.dtype), floor)


def around(levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """The boundaries below and above each level, infinite at the ends."""
    ends = np.concatenate([[-np.inf], levels.boundaries, [np.inf]])
    return ends[:-1], ends[1:]
