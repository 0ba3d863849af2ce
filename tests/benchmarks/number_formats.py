"""Time of rounding to a number format, and agreement with softposit.

    taskset -c 0 python tests/benchmarks/number_formats.py
    taskset -c 0 python tests/benchmarks/number_formats.py --softposit

The unit is a cast of a million float32 to float8, and a look-up of each code in a table
of 256 entries; posit<8,2> must take no longer.  With --softposit (from PyPI, not a
dependency of anything here) every pattern, every rounding threshold and its neighbours
are compared for es = 0 at 8 bits, 1 at 16 and 2 at 8 and 16.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import number_formats

NAMES = ("posit<8,2>", "posit<8,0>", "posit<16,1>", "posit<16,2>", "float8_e4m3fn")
NAMES += ("float8_e3m4", "bfloat16", "int8", "Q1.6", "binary", "ternary")


def unit(x: jax.Array) -> jax.Array:
    """What a format with a table would cost at least: the cast, and a look-up."""
    table = jnp.linspace(-1.0, 1.0, 256, dtype=jnp.float32)
    codes = jax.lax.bitcast_convert_type(x.astype(jnp.float8_e4m3fn), jnp.uint8)
    return jnp.take(table, codes.astype(jnp.int32), mode="clip")


def cast_and_back(x: jax.Array) -> jax.Array:
    """The cast alone, without a look-up."""
    return x.astype(jnp.float8_e4m3fn).astype(x.dtype)


def measure(functions: dict[str, Callable], x: jax.Array, rounds: int) -> None:
    """Prints the least time of each; they take turns, for the machine drifts."""
    compiled = {name: jax.jit(one) for name, one in functions.items()}
    times = {name: [] for name in compiled}
    for number in range(rounds + 2):
        for name, one in compiled.items():
            start = time.process_time()
            jax.block_until_ready(one(x))
            if number > 1:
                times[name].append(time.process_time() - start)
    base = min(times["unit"])
    for name, found in times.items():
        print(f"{name:16} {1000 * min(found):7.2f} ms {min(found) / base:6.2f}")


def agreement() -> None:
    """Prints the number of codes that differ from softposit's."""
    import softposit  # pyright: ignore[reportMissingImports]

    def of_size(bits: int) -> Callable[[float], int]:
        """posit<bits,2>, in the top bits of 32."""
        return lambda x: softposit.convertDoubleToPX2(x, bits).v >> (32 - bits)

    makers = {
        (8, 0): lambda x: softposit.convertDoubleToP8(x).v,
        (16, 1): lambda x: softposit.convertDoubleToP16(x).v,
        (8, 2): of_size(8),
        (16, 2): of_size(16),
    }
    rng = np.random.default_rng(0)
    for (bits, es), encode in makers.items():
        fmt, finer = (number_formats.posit(n, es) for n in (bits, bits + 1))
        codes = jnp.arange(2 ** (bits + 1), dtype=jnp.uint32)
        points = np.asarray(jax.jit(finer.decode)(codes))
        points = points[~np.isnan(points)]
        drawn = rng.normal(size=20_000) * 10.0 ** rng.uniform(-9, 9, 20_000)
        some = [points, drawn, [0.0, 1e-40, 1e30, -1e30]]
        up, down = np.float32(np.inf), np.float32(-np.inf)
        some += [np.nextafter(points, up), np.nextafter(points, down)]
        x = np.concatenate([np.asarray(one, np.float32) for one in some])
        x = x[np.abs(x) >= np.finfo(np.float32).tiny]
        found = np.asarray(jax.jit(fmt.encode)(x))
        theirs = np.array([encode(float(one)) for one in x]) & (2**bits - 1)
        print(f"posit<{bits},{es}>: {np.sum(found != theirs)} of {len(x)} differ")


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--softposit", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    if options.softposit:
        agreement()
        return
    x = jnp.asarray(np.random.default_rng(0).normal(size=1_000_000), jnp.float32)
    rounding = {name: number_formats.by_name(name).round for name in NAMES}
    others = {"unit": unit, "cast and back": cast_and_back}
    measure({**others, **rounding}, x, options.rounds)


if __name__ == "__main__":
    main()
