"""Every quantiser, as the contract tests take it."""

import jax.numpy as jnp
import pytest

from bilevel import number_formats, quantized
from bilevel.quantized import scales

BINARY, TERNARY = number_formats.binary(), number_formats.ternary()
INT4, POSIT = number_formats.symmetric(4), number_formats.posit(6, 1)

# Name of a case -> quantiser.
QUANTIZERS = {
    "adaste": quantized.adaste(BINARY, 4.0, alpha=0.1),
    "adaste_posit": quantized.adaste(POSIT, 4.0, alpha=0.1, scale=0.25),
    "adaste_centred": quantized.adaste(TERNARY, 4.0, alpha=0.1, centred=True),
    "adaste_as_released": quantized.adaste(BINARY, 4.0, alpha=0.1, as_released=True),
    "tanh_projection": quantized.tanh_projection(TERNARY, 3.0),
    "tanh_projection_nudged": quantized.tanh_projection(BINARY, 3.0, beta=0.3),
    "softmax_projection": quantized.softmax_projection(TERNARY, 3.0),
    "mirror_descent_tanh": quantized.mirror_descent_tanh(BINARY, 3.0),
    "mirror_descent_softmax": quantized.mirror_descent_softmax(BINARY, 3.0),
    "proxquant": quantized.proxquant(INT4, 0.1, scale=0.2),
    "proxquant_l2": quantized.proxquant(TERNARY, 0.1, form="l2"),
    "ste": quantized.ste(INT4, scale=scales.max_abs),
    "ste_of_channels": quantized.ste(INT4, scale=scales.of_channels(scales.max_abs)),
    "ste_posit": quantized.ste(POSIT, scale=scales.least_squares),
    "clipped_ste": quantized.clipped_ste(BINARY),
    "binary_connect": quantized.binary_connect(),
    "binary_connect_drawn": quantized.binary_connect(TERNARY, stochastic=True),
    "approx_sign": quantized.approx_sign(scale=scales.mean_abs),
    "swish_sign": quantized.swish_sign(),
    "reste": quantized.reste(scale=scales.mean_abs),
    "bayesbinn": quantized.bayesbinn(),
    "bop": quantized.bop(),
    "xnor": quantized.xnor(),
    "twn": quantized.twn(per_channel=True),
    "dorefa": quantized.dorefa(3),
    "dorefa_activation": quantized.dorefa_activation(2),
    "pact": quantized.pact(3, clip=2.0),
    # The default start, of least squares, is tested once: 97 roundings compile long.
    "lsq": quantized.lsq(
        number_formats.affine(3), per_channel=True, scale=scales.max_abs
    ),
    "lsq_plus": quantized.lsq_plus(
        number_formats.affine(4, signed=False), start="published"
    ),
    "learned_scale": quantized.learned_scale(
        number_formats.by_name("float4_e2m1fn"), scales.of_channels(scales.max_abs)
    ),
    "learned_levels": quantized.learned_levels(
        number_formats.symmetric(3), scales.max_abs
    ),
}
# Less often tested: others are like them.
VARIANTS = {
    "adaste_posit",
    "binary_connect_drawn",
    "dorefa_activation",
    "proxquant_l2",
    "ste_of_channels",
    "ste_posit",
    "tanh_projection_nudged",
}
CASES = [
    pytest.param(name, marks=pytest.mark.thorough if name in VARIANTS else [])
    for name in QUANTIZERS
]
# Those whose weights are levels in training already.
ALWAYS_LEVELS = set(QUANTIZERS) - {
    "adaste",
    "adaste_posit",
    "adaste_centred",
    "adaste_as_released",
    "tanh_projection",
    "tanh_projection_nudged",
    "softmax_projection",
    "mirror_descent_tanh",
    "mirror_descent_softmax",
    "proxquant",
    "proxquant_l2",
    "binary_connect_drawn",  # other ones than the final
    "bayesbinn",
}


def at(step=0, key=None):
    """A step of training."""
    return quantized.At(jnp.asarray(step, jnp.int32), key)
