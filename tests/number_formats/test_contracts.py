"""What every format promises: its functions belong together, under any transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import number_formats

NAMES = [
    "posit<6,1>",
    "posit<8,2>",
    "int4",
    "affine8",
    "unsigned4",
    "Q1.6",
    "float8_e4m3fn",
    "float8_e5m2fnuz",
    "float4_e2m1fn",
    "bfloat16",
    "float8_e8m0fnu",
    "binary",
    "ternary",
]
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    fmt = number_formats.by_name(name)
    assert number_formats.by_name(fmt) is fmt
    assert fmt.name == name
    levels = fmt.levels()
    assert np.all(np.diff(levels) > 0)
    assert 1 < len(levels) <= 2**fmt.bits
    assert fmt.range == (levels[0], levels[-1])

    @jax.jit
    def all_of(levels, x):
        codes = fmt.encode(levels)
        moves = [fmt.neighbour(codes, jnp.int32(d)) for d in (-1, 0, 1)]
        mapped = jax.vmap(jax.vmap(fmt.round))(x)
        return codes, [fmt.decode(m, levels.dtype) for m in moves], fmt.round(x), mapped

    x = jax.random.normal(KEY, (7, 5))
    codes, (down, same, up), rounded, mapped = all_of(levels, x)
    assert jnp.issubdtype(codes.dtype, jnp.integer)
    np.testing.assert_array_equal(same, levels)
    np.testing.assert_array_equal(down, levels[[0, *range(len(levels) - 1)]])
    np.testing.assert_array_equal(up, levels[[*range(1, len(levels)), -1]])
    np.testing.assert_array_equal(rounded, mapped)
    known = set(levels.tolist())
    assert all(value in known for value in np.ravel(rounded) if not np.isnan(value))
    assert fmt.round(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="expected floats, got int"):
        fmt.encode(jnp.arange(3))


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_rounding_is_right_in_the_mean(name):
    fmt = number_formats.by_name(name)
    levels, num = fmt.levels(), 40_000
    inside = levels[(np.abs(levels) < 1e3) & (np.abs(levels) > 1e-3)]
    low, high = inside[len(inside) // 2 - 1 : len(inside) // 2 + 1]
    run = jax.jit(
        lambda key, x: number_formats.stochastic_round(fmt, key, jnp.full(num, x))
    )
    for part in (0.25, 0.5, 0.9):
        x = low + part * (high - low)
        drawn = np.asarray(run(KEY, x))
        below, above = levels[levels <= x].max(), levels[levels >= x].min()
        assert set(drawn.tolist()) <= {below, above}
        error = (above - below) * 0.5 / num**0.5
        assert abs(drawn.mean() - x) < 5 * error + 1e-12
    exact = np.asarray(run(KEY, low))
    assert np.all(exact == low)
    if name != "float8_e8m0fnu":
        most = np.asarray(run(KEY, 2 * fmt.range[1] if fmt.range[1] < 1e30 else 1e38))
        assert np.all((most == fmt.range[1]) | ~np.isfinite(most) | (most > 1e37))


def test_scaled_is_the_format_of_the_quotient():
    x = np.random.default_rng(0).normal(size=1000)
    for name in ("posit<8,1>", "float8_e4m3fn", "int4", "ternary"):
        plain = number_formats.by_name(name)
        fmt = number_formats.scaled(plain, 0.3)
        found, codes, expected, same = jax.jit(
            lambda x, f=fmt, p=plain: (
                f.round(x),
                f.encode(x),
                0.3 * p.round(x * (1 / 0.3)),
                p.encode(x * (1 / 0.3)),
            )
        )(x)
        np.testing.assert_allclose(found, expected, rtol=1e-15)
        np.testing.assert_array_equal(codes, same)
        np.testing.assert_allclose(fmt.levels(), 0.3 * plain.levels(), rtol=1e-15)


@pytest.mark.parametrize("name", ["posit<8>", "int", "float8", "Q8", "posit8", ""])
def test_a_name_that_there_is_not(name):
    with pytest.raises(ValueError, match="there is no number format"):
        number_formats.by_name(name)
    with pytest.raises(ValueError, match="exponent_bits must lie in"):
        number_formats.by_name("posit<8,7>")
