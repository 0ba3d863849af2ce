"""What every format promises: its functions belong together, under any transform."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import number_formats
from bilevel.number_formats import description
from bilevel.number_formats.stochastic_round import happens

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
POSIT = number_formats.posit(8, 1)


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
@pytest.mark.thinned(3)
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


DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_q2_stochastic_rounding_is_unbiased_in_every_dtype(dtype):
    """Small chances, which a draw in the dtype of the data cannot tell from larger."""
    fmt, num = number_formats.symmetric(8), 200_000
    draw = jax.jit(lambda x: number_formats.stochastic_round(fmt, KEY, x))
    for value in (1e-3, 0.3, -2.05, 0.99):
        x = jnp.full(num, value, dtype)
        drawn = draw(x)
        assert drawn.dtype == dtype
        exact = float(x[0])
        part = exact - np.floor(exact)
        error = np.sqrt(part * (1 - part) / num)
        assert abs(np.asarray(drawn, np.float64).mean() - exact) < 4 * error
        assert 4 * error < min(part, 1 - part)


def test_q2_chances_are_compared_in_two_digits():
    """One of 2^-30 happens by its second digit alone, after a first one of zero."""
    chance = jnp.full(8, 2.0**-30, jnp.float32)
    drawn = jnp.stack([jnp.zeros(8), jnp.arange(8) * 2.0**-9]).astype(jnp.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", lambda *_: drawn)
        found = happens(KEY, chance)
    # In units of 2^-23 the chance is 2^-7, four of the steps of 2^-9.
    np.testing.assert_array_equal(found, jnp.arange(8) < 4)


@pytest.mark.parametrize("name", ["posit<8,2>", "bfloat16", "float8_e8m0fnu", "int4"])
def test_q8_no_level_is_infinite_in_a_narrow_dtype(name):
    plain = number_formats.by_name(name, saturating=True)
    x = jnp.array([65504, 60000], jnp.float16)
    for f in (plain, number_formats.scaled(plain, 1.5)):
        both = jax.jit(lambda x, f=f: (f.round(x), f.decode(f.encode(x), x.dtype)))(x)
        for found in both:
            assert np.all(np.isfinite(found))
            assert np.all(found > 0)


def test_q8_float16_gets_its_greatest_number():
    found = number_formats.posit(8, 2).round(jnp.float16(60000))
    assert float(found) == float(jnp.finfo(jnp.float16).max)


@pytest.mark.parametrize("scale", [3e38, 1e38, 1.5e-38])
def test_q8_scales_whose_reciprocal_is_subnormal(scale):
    f = number_formats.scaled(number_formats.symmetric(8), scale)
    assert float(f.round(jnp.float32(scale))) == np.float32(scale)
    traced = jax.jit(lambda s, x: number_formats.scaled(POSIT, s).round(x))
    x = jnp.float32(scale)
    assert float(traced(x, x)) == np.float32(scale)
    with pytest.raises(ValueError, match="beyond float32"):
        number_formats.scaled(POSIT, 1e39).round(x)


@pytest.mark.parametrize("name", [*NAMES, "posit<16,2>", "minifloat", "own", "table"])
def test_q5_formats_pickle(name):
    made = {
        "minifloat": number_formats.minifloat(3, 2, "fn", bias=4, saturating=True),
        "own": number_formats.affine(4, 0.25, 3),
        "table": number_formats.codebook([-1.0, 0.5, 2.0], "table"),
    }
    fmt = made.get(name) or number_formats.by_name(name)
    renamed = fmt._replace(name="mine", anchor=2.0)
    for one in (fmt, renamed, number_formats.scaled(fmt, 0.5)):
        again = pickle.loads(pickle.dumps(one))
        plain = description.described(json.loads(json.dumps(description.describe(one))))
        x = jnp.linspace(-3, 3, 11)
        for other in (again, plain):
            assert (other.name, other.range) == (one.name, one.range)
            np.testing.assert_array_equal(other.encode(x), one.encode(x))
            np.testing.assert_array_equal(other.round(x), one.round(x))
        assert again.anchor == one.anchor
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(fmt._replace(round=lambda x: x))
    assert description.describe(fmt._replace(round=lambda x: x)) is None


def test_p6_integers_of_numpy_are_integers():
    one, two, four = np.int64(1), np.int32(2), np.uint8(4)
    makers = [
        (number_formats.posit, (four, one)),
        (number_formats.symmetric, (four,)),
        (number_formats.affine, (four,)),
        (number_formats.fixed_point, (one, two)),
        (number_formats.minifloat, (two, one, "finite")),
    ]
    for make, args in makers:
        plain = [one if isinstance(one, str) else int(one) for one in args]
        made = make(*args)
        np.testing.assert_array_equal(made.levels(), make(*plain).levels())
        json.dumps(description.describe(made))
        with pytest.raises(ValueError, match=r"must be an integer, got 4\.5"):
            make(4.5, *args[1:])
