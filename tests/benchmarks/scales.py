"""Default scales against the best one, and means of stochastic rounding, as tables.

    PYTHONPATH=tests python tests/benchmarks/scales.py

Normal weights with standard deviation 0.05 (their magnitudes for formats without a
sign), 4096 of them: for each format the dB of SQNR that the scale with which a
quantiser starts lies below the best one. "-" is a quantiser that does not take the
format. Then, for each dtype, the mean of a million stochastic roundings to int8.
"""

import jax
import jax.numpy as jnp
import numpy as np
from quantized.starts import FORMATS, OWN, STARTS, below_best

from bilevel import number_formats


def starts() -> None:
    """A line for each format."""
    own = [name for each in OWN.values() for name in each]
    heads = [*STARTS, *own]
    print("format".ljust(20), *(head.rjust(14) for head in heads))
    for name in FORMATS:
        found = below_best(name, num=4096)
        cells = [f"{found[head]:.2f}" if head in found else "-" for head in heads]
        print(name.ljust(20), *(cell.rjust(14) for cell in cells), flush=True)


def means() -> None:
    """A line for each dtype and value."""
    f, num = number_formats.symmetric(8), 1_000_000
    draw = jax.jit(lambda x: number_formats.stochastic_round(f, jax.random.key(0), x))
    print("\ndtype     x           mean        standard error  deviations")
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        for value in (1e-3, 0.3, -2.05):
            x = jnp.full(num, value, dtype)
            mean = float(np.asarray(draw(x), np.float64).mean())
            exact = float(x[0])
            part = exact - np.floor(exact)
            error = np.sqrt(part * (1 - part) / num)
            told = f"{exact:<11.6g} {mean:<11.6g} {error:<15.2g}"
            print(f"{jnp.dtype(dtype).name:<9} {told} {(mean - exact) / error:+.2f}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    starts()
    means()
