"""BayesBiNN: the natural parameters of Bernoulli weights, learned from draws."""

import jax
import jax.numpy as jnp
import optax

from bilevel import number_formats
from bilevel.number_formats.recipe import made_by
from bilevel.quantized.elementwise import elementwise
from bilevel.quantized.quantizer import At, Quantizer, positive, with_slope
from bilevel.quantized.quantizers.binary_connect import require_key

TINY = 1e-10  # as published


def bayesbinn(temperature: float = 1e-10, *, start: float = 10.0) -> Quantizer:
    """Draws relaxed Bernoulli weights, w = tanh((x + d) / T), d = log(e / (1 - e)) / 2.

    With e uniform in (0, 1), drawn in each step; x are half the log-odds of w = 1. The
    gradient is that of the draw over the variance of w, a natural gradient:

        dx = dw c,   c = (1 - w^2 + 1e-10) / (T (1 - tanh(x)^2 + 1e-10))

    `bayesbinn_updates` is its rule x <- (1 - eta) x - eta N dx, for x_prior = 0. The
    final weights are sgn(x), the more likely ones.

    Args:
        temperature: T; as small as the published one weights are -1 or 1 in training,
            too, and c is 1 / (1 - tanh(x)^2) but for the 1e-10.
        start: magnitude of the latent weights at first; their signs are those of the
            weights given.

    Returns:
        A `Quantizer` that draws: its state needs a key.

    Raises:
        ValueError: a temperature or a start that is not positive; (when applied) a
            state without key.

    Source: Meng, Bachmann, Khan 2020, arXiv:2002.10778, algorithm 1, equations 10 to
    12; constants: github.com/team-approx-bayes/BayesBiNN. There tanh(x) is of the step
    before, here of this one; 1 - tanh(x)^2 is taken so that float32 does not round it
    to 0 (at x = 10 c would be 1e10 in place of 1.2e8).

    Example:
        >>> q = bayesbinn()
        >>> at = At(jnp.zeros((), jnp.int32), jax.random.key(0))
        >>> q.quantize(jnp.array([10.0, -10.0]), (), at).tolist()
        [1.0, -1.0]
    """
    positive("bayesbinn: temperature", temperature)
    positive("bayesbinn: start", start)
    sign = number_formats.binary()

    def rule(u: jax.Array, at: At) -> jax.Array:
        key = require_key("bayesbinn", at)
        wide = u.astype(jnp.promote_types(u.dtype, jnp.float32))
        noise = jax.random.logistic(key, wide.shape, wide.dtype) / 2
        drawn = (wide + noise) / temperature
        slope = (variance(drawn) + TINY) / temperature / (variance(wide) + TINY)
        return with_slope(jnp.tanh(drawn), slope, wide).astype(u.dtype)

    def first(weights: jax.Array, key: jax.Array | None) -> jax.Array:
        del key
        return start * sign.round(weights)

    made = elementwise("bayesbinn", sign, rule, None, start=first)
    return made_by(made, bayesbinn, temperature, start=start)


def bayesbinn_updates(
    learning_rate: optax.ScalarOrSchedule, num_examples: int, *, momentum: float = 0.0
) -> optax.GradientTransformation:
    """x <- x - eta m, m the mean over steps of N g + x; g a gradient of the mean loss.

    Args:
        learning_rate: eta. Published for MNIST: 1e-4, cosine to 0 over 500 epochs of
            batches of 100.
        num_examples: N, in training.
        momentum: of the mean, corrected for its start; published 0 for MNIST.

    Returns:
        An optax transformation, for the latent weights of `bayesbinn` alone.

    Source: Meng, Bachmann, Khan 2020, arXiv:2002.10778, equation 9, uniform prior.
    """
    mean = optax.ema(momentum) if momentum else optax.identity()
    return optax.chain(
        optax.scale(float(num_examples)),
        optax.add_decayed_weights(1.0),
        mean,
        optax.scale_by_learning_rate(learning_rate),
    )


def variance(x: jax.Array) -> jax.Array:
    """1 - tanh(x)^2, without cancellation."""
    decayed = jnp.exp(-2 * jnp.abs(x))
    return 4 * decayed / jnp.square(1 + decayed)
