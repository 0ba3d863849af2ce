"""How far default scales are from the best one, in dB, for tests and for a table."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import number_formats, quantized

FORMATS = (
    *("int2", "int3", "int4", "int8", "int16", "affine4", "affine8"),
    *("unsigned2", "unsigned4", "unsigned8", "Q1.6", "binary", "ternary"),
    *("posit<4,0>", "posit<4,1>", "posit<6,1>", "posit<8,0>", "posit<8,1>"),
    *("posit<8,2>", "posit<9,4>", "posit<16,1>", "posit<16,2>"),
    *number_formats.MINIFLOATS,
    "float8_e8m0fnu",
)
# Every quantiser with a scale of its own at first, and `max_abs`.
STARTS = {
    "learned_scale": quantized.learned_scale,
    "learned_levels": quantized.learned_levels,
    "lsq": quantized.lsq,
    "lsq_plus": quantized.lsq_plus,
    "max_abs": lambda f: quantized.ste(f, scale=quantized.scales.max_abs),
}
# Those of one format.
OWN = {
    "binary": {"xnor": lambda f: quantized.xnor(per_channel=False)},
    "ternary": {"twn": lambda f: quantized.twn()},
}


def decibel(x, q):
    """Signal to quantisation noise."""
    noise = np.sum((np.asarray(x, np.float64) - np.asarray(q, np.float64)) ** 2)
    signal = np.sum(np.asarray(x, np.float64) ** 2)
    return 10 * np.log10(signal / max(noise, 1e-30 * signal))


def best(levels, x):
    """That of the best scale, each number at the level nearest in value."""
    middle, rms = levels[1:] / 2 + levels[:-1] / 2, np.sqrt(np.mean(x**2))
    ends = np.abs(x).max() / np.abs(levels).max() * 2.0 ** np.arange(-3, 1, 0.02)
    scales = [*(s for s in ends if s > 1e-37), *(rms * 2.0 ** np.arange(-12, 6, 0.05))]
    return max(decibel(x, s * levels[np.searchsorted(middle, x / s)]) for s in scales)


def below_best(name, num=600):
    """Quantiser -> dB between the best scale and the one that it starts with.

    Normal weights, their magnitudes for formats without a sign. Formats of 16 bits are
    compared with their own rounding, `number_formats.best_scale`.
    """
    f = number_formats.by_name(name)
    x = 0.05 * jax.random.normal(jax.random.key(2), (num,), jnp.float32)
    x = x if f.range[0] < 0 else jnp.abs(x)
    at = quantized.At(jnp.zeros((), jnp.int32))
    makers = {**STARTS, **OWN.get(name, {})}
    if f.bits > 8:
        del makers["learned_levels"]
    if name == "float8_e8m0fnu":
        del makers["lsq_plus"]  # refuses it
    each = {key: make(f) for key, make in makers.items()}
    found = jax.jit(
        lambda x: {k: q.quantize(x, q.learn(x), at) for k, q in each.items()}
    )(x)
    if f.bits > 10:
        most = number_formats.best_scale(f, x)
        top = decibel(x, number_formats.scaled(f, most).round(x))
    else:
        top = best(f.levels(), np.asarray(x, np.float64))
    return {key: top - decibel(x, q) for key, q in found.items()}
