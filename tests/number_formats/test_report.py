"""The report on formats: against figures in closed form, and the reference's."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import number_formats
from bilevel.number_formats import best_scale, report


def test_best_scale_of_three_values():
    """Of {-1, 0, 1} for -1, 0.5 + e and 1: s minimises 2 (1 - s)^2 + (0.6 - s)^2."""
    values = jnp.array([-1.0, 0.6, 1.0])
    found = best_scale(number_formats.symmetric(2), values)
    assert found == pytest.approx(2.6 / 3, rel=1e-2)


@pytest.mark.thorough
def test_report_on_normal_values():
    """SQNR at the best scale, as measured for the reference; in dB."""
    weights = np.random.default_rng(0).normal(size=50_000)
    expected = {"int8": 40.5, "posit<8,0>": 41.3, "posit<8,2>": 31.5, "int4": 18.9}
    expected |= {"float8_e3m4": 37.5, "float8_e4m3fn": 31.5}
    formats = [number_formats.by_name(name) for name in expected]
    tree = {"a": jnp.asarray(weights[:20_000]), "b": jnp.asarray(weights[20_000:])}
    found = report(formats, tree)
    for row in found.rows:
        # The reference drew other values, whose largest one sets int8's scale.
        assert row.sqnr == pytest.approx(expected[row.name], abs=0.5)
        assert row.sqnr >= row.sqnr_of_range - 1e-9
    rows = {row.name: row for row in found.rows}
    # Posits round nothing to zero, and blow up what is below their least number.
    assert rows["posit<8,0>"].flushed == 0
    assert rows["posit<8,0>"].relative_errors[-1] > 10
    assert 0.005 < rows["int8"].flushed < 0.02
    np.testing.assert_allclose(rows["int8"].relative_errors[-3:], 1)
    # The share of the octave (largest / 2, largest], and all of them.
    share = np.mean(np.abs(weights) > found.largest / 2)
    assert found.shares[0] == pytest.approx(share, abs=1e-3)
    assert found.shares.sum() == pytest.approx(1, abs=1e-3)
    lines = str(found).splitlines()
    assert len(lines) == len(formats) + 2
    assert lines[1].startswith("int8 ")
    assert "40." in lines[1]
    axes = found.figure().axes
    assert len(axes[0].get_lines()) == len(formats)


@pytest.mark.parametrize(
    ("formats", "values", "message"),
    [
        ([], [1.0], "at least one format"),
        (["int4"], [], "expected values, got none"),
        (["int4"], [1.0, np.nan, np.inf], "2 of 3 values are not finite"),
        (["int4"], [0.0, 0.0], "all values are 0"),
    ],
)
def test_what_is_refused(formats, values, message):
    formats = [number_formats.by_name(name) for name in formats]
    with pytest.raises(ValueError, match=message):
        report(formats, jnp.array(values, float))
