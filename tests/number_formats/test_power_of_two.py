"""Powers of two against ml_dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bilevel import number_formats


def test_is_that_of_ml_dtypes():
    fmt, dtype = number_formats.power_of_two(), ml_dtypes.float8_e8m0fnu
    codes = np.arange(256, dtype=np.uint8)
    decoded = np.asarray(jax.jit(fmt.decode)(codes))
    expected = codes.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_array_equal(fmt.levels(), expected[:-1])
    middle = (1.5 * 2.0 ** np.arange(-127, 127)).astype(np.float32)
    drawn = np.random.default_rng(0).integers(0, 2**32, 50_000, dtype=np.uint32)
    special = [0.0, -0.0, 1e-45, 1e-40, 3e38, np.inf, -np.inf, np.nan, -1.0]
    up, down = np.float32(np.inf), np.float32(0)
    parts = [middle, np.nextafter(middle, up), np.nextafter(middle, down), special]
    parts = [np.asarray(part, np.float32) for part in parts]
    x = np.concatenate([*parts, drawn.view(np.float32)])
    with np.errstate(all="ignore"):
        expected = x.astype(dtype).view(np.uint8)
    np.testing.assert_array_equal(jax.jit(fmt.encode)(x), expected)
    wide = jnp.array([1.5, 2.999, 2.0**-140, 2.0**130])
    np.testing.assert_array_equal(fmt.round(wide), [2, 2, 2.0**-127, np.nan])
