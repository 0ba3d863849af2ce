"""A numerics fingerprint: do random numbers and first steps still have these values?

Versions miss what bites most. One flag of JAX, `jax_threefry_partitionable`, changes
every initial weight at identical versions; its default was flipped in jax 0.5.0. So a
handful of small results is computed and compared with a golden file:

    exact  random bits, splits and a permutation: integers, equal or not
    float  initialisers, a dense layer, one Adam step, a matrix product; products,
           singular values, exp and tanh of NumPy: within 1e-6, since the last bits
           depend on the instruction set

The fingerprint sees neither the number of threads nor AVX2 against AVX-512; those are
recorded by `environment`, with the bits of NumPy's results. Environment variables that
choose instructions (see `host_numerics`) count as flags.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.experiments import host_numerics

Tier = Literal["exact", "float"]

GOLDEN = Path(__file__).with_name("fingerprint.json")
"""The golden file of this package."""

_TOLERANCE = 1e-6
_FORMAT = 1


class Item(NamedTuple):
    """One result: `values` are its entries (of a large array some of them)."""

    tier: Tier
    values: tuple[float, ...]


class Golden(NamedTuple):
    """A golden file: the results, and what they were computed with.

    Attributes:
      items: the results by name.
      flags: JAX's flags that change numbers, and the environment variables by which
        NumPy and its BLAS choose instructions (None: not set), by name.
      packages: `{name: version}` of the packages that compute them.
    """

    items: dict[str, Item]
    flags: dict[str, Any]
    packages: dict[str, str]


def compute(tiers: Sequence[Tier] = ("exact", "float")) -> dict[str, Item]:
    """Computes the results; with x64 off and standard promotion, whatever is set.

    Cost: a second (the exact tier 0.4 s), nearly all of it compilation, which is not
    kept: a flag that has moved since would not be noticed.

    Args:
      tiers: which results.

    Example:
      >>> compute(["exact"])["prng_bits"].tier
      'exact'
    """
    chosen = {name: one for name, one in _ITEMS.items() if one[0] in tiers}
    host = {name: one for name, one in _HOST_ITEMS.items() if one[0] in tiers}
    # In one compiled function: op by op, compilation would take three seconds.
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        results = jax.jit(
            lambda: {name: make() for name, (_, make) in chosen.items()}
        )()
    results |= {name: make() for name, (_, make) in host.items()}
    return {
        name: Item(tier, _values(results[name]))
        for name, (tier, _) in {**chosen, **host}.items()
    }


def flags() -> dict[str, Any]:
    """Returns the flags that change numbers, of JAX and of NumPy, `{name: value}`."""
    values = {name: getattr(jax.config, name) for name in _FLAGS}
    plain = {name: getattr(one, "value", one) for name, one in values.items()}
    return plain | {name: os.environ.get(name) for name in host_numerics.VARIABLES}


def current() -> Golden:
    """Computes what a golden file would hold now."""
    return Golden(compute(), flags(), {name: version(name) for name in _PACKAGES})


def write(path: str | os.PathLike[str]) -> None:
    """Writes the golden file of this environment, one result a line."""
    golden = current()
    items = {
        name: json.dumps({"tier": item.tier, "values": item.values})
        for name, item in golden.items.items()
    }
    lines = ",\n".join(f'  "{name}": {text}' for name, text in items.items())
    Path(path).write_text(
        f'{{\n "format_version": {_FORMAT},\n'
        f' "flags": {json.dumps(golden.flags)},\n'
        f' "packages": {json.dumps(golden.packages)},\n'
        f' "items": {{\n{lines}\n }}\n}}\n'
    )


def read(path: str | os.PathLike[str] = GOLDEN) -> Golden:
    """Reads a golden file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no golden file of this version.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["format_version"] != _FORMAT:
            raise ValueError(f"format {content['format_version']}, expected {_FORMAT}")
        items = {
            name: Item(one["tier"], tuple(one["values"]))
            for name, one in content["items"].items()
        }
        return Golden(items, content["flags"], content["packages"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no fingerprint: {error!r}") from error


def problems(golden: Golden) -> list[str]:
    """Says what has changed since a golden file was written, and by what.

    Returns:
      One line for each flag that moved; if results differ, one line for each of them,
      and one that names the flags and packages that moved. Empty if all is the same;
      a package that moved without changing a number is no problem.
    """
    now = current()
    moved = {
        "flag": [
            f"{name} is {now.flags.get(name)!r}, was {value!r}"
            for name, value in golden.flags.items()
            if now.flags.get(name) != value
        ],
        "package": [
            f"{name} is {now.packages.get(name)}, was {value}"
            for name, value in golden.packages.items()
            if now.packages.get(name) != value
        ],
    }
    lines = [f"flag {one}" for one in moved["flag"]]
    if changed := difference(golden.items, now.items):
        suspects = moved["flag"] or moved["package"]
        cause = "; ".join(suspects) or "neither a flag nor a package: XLA_FLAGS, or CPU"
        lines += [f"numbers: {one}" for one in changed]
        lines += [f"numbers changed; what moved: {cause}"]
    return lines


def difference(golden: Mapping[str, Item], found: Mapping[str, Item]) -> list[str]:
    """Lists the items that differ, one line each; empty if the numbers are the same.

    Args:
      golden: the items of a golden file.
      found: from `compute`.
    """
    lines = []
    for name in sorted(golden.keys() | found.keys()):
        if name not in golden or name not in found:
            where = "the golden file" if name in found else "this version of bilevel"
            lines.append(f"{name}: unknown to {where}")
        elif what := _difference(golden[name], found[name]):
            lines.append(f"{name}: {what}")
    return lines


def _difference(golden: Item, found: Item) -> str:
    expected, came = np.array(golden.values), np.array(found.values)
    if expected.shape != came.shape:
        return f"{len(came)} values, expected {len(expected)}"
    if golden.tier == "exact":
        wrong = expected != came
    else:
        wrong = ~np.isclose(came, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
    if not wrong.any():
        return ""
    first = int(wrong.argmax())
    values = f"{came[first]:.10g}, expected {expected[first]:.10g}"
    return f"{int(wrong.sum())} of {len(came)} values differ, the first {values}"


def _values(array: Any) -> tuple[float, ...]:
    # float32 and uint32 are exact in a Python number, and so in JSON.
    return tuple(np.asarray(array).ravel().tolist())


def _key() -> jax.Array:
    return jax.random.key(0)


def _initializer(name: str) -> jax.Array:
    from flax import linen

    return getattr(linen.initializers, name)()(_key(), (16, 8), jnp.float32)


def _dense() -> Any:
    from flax import linen

    return linen.Dense(4).init(_key(), jnp.ones((1, 3)))["params"]["kernel"]


def _adam_step() -> Any:
    import optax

    optimizer, gradient = optax.adam(0.1), jnp.ones(3)
    return optimizer.update(gradient, optimizer.init(gradient))[0]


def _matmul() -> jax.Array:
    matrix = jax.random.normal(_key(), (256, 256), jnp.float32)
    return (matrix @ matrix)[::32, ::32] / 16  # entries of size one


_ITEMS: dict[str, tuple[Tier, Callable[[], Any]]] = {
    "prng_bits": ("exact", lambda: jax.random.bits(_key(), (64,), jnp.uint32)),
    "split": ("exact", lambda: jax.random.key_data(jax.random.split(_key(), 4))),
    "permutation": ("exact", lambda: jax.random.permutation(_key(), 64)),
    "normal": ("float", lambda: jax.random.normal(_key(), (64,), jnp.float32)),
    "lecun_normal": ("float", lambda: _initializer("lecun_normal")),
    "glorot_uniform": ("float", lambda: _initializer("glorot_uniform")),
    "dense": ("float", _dense),
    "adam_step": ("float", _adam_step),
    "matmul_f32": ("float", _matmul),
}

# Not under jit.
_HOST_ITEMS: dict[str, tuple[Tier, Callable[[], Any]]] = {
    "numpy": ("float", host_numerics.results),
}

_FLAGS = (
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_default_prng_impl",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_disable_jit",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
