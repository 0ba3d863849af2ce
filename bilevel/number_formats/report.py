"""What rounding to a format costs: near zero, over all, and in values that vanish."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.number_formats.number_format import NumberFormat, as_float
from bilevel.number_formats.scaled import scaled


class Row(NamedTuple):
    """One format at its best scale.

    Attributes:
        name: of the format.
        bits: of a code.
        scale: s, the one of the least squared error of s round(x / s).
        sqnr: signal to quantisation noise, 10 log10(sum x^2 / sum (x - q)^2), in dB.
        sqnr_of_range: the same at the scale that puts the largest value at the end of
            the range.
        flushed: the share of the values that become 0 and were not.
        relative_errors: `[num_octaves]`, the mean of |x - q| / |x| over magnitudes
            that lie evenly in an octave; the first ends at the largest value.
    """

    name: str
    bits: int
    scale: float
    sqnr: float
    sqnr_of_range: float
    flushed: float
    relative_errors: np.ndarray


class Report(NamedTuple):
    """A row for each format; print it for the table.

    Attributes:
        rows: in the order given.
        largest: the largest magnitude among the values.
        shares: `[num_octaves]`, of the values, by octave of their magnitude.
    """

    rows: tuple[Row, ...]
    largest: float
    shares: np.ndarray

    def __str__(self) -> str:
        """The table: errors at the octaves 0, -2, -4, ... below the largest value."""
        some = range(0, len(self.shares), 2)
        heads = ["format", "bits", "SQNR", "at range", "flushed", "scale"]
        lines = [[*heads, *(f"2^-{k}" for k in some)]]
        for row in self.rows:
            errors = [f"{row.relative_errors[k]:.3g}" for k in some]
            dbs = [f"{row.sqnr:.1f} dB", f"{row.sqnr_of_range:.1f} dB"]
            told = [row.name, str(row.bits), *dbs, f"{row.flushed:.1%}"]
            lines.append([*told, f"{row.scale:.3g}", *errors])
        shares = [f"{self.shares[k]:.1%}" for k in some]
        lines.append(["share of values", *[""] * 5, *shares])
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if k == 0 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def figure(self) -> Any:
        """The relative errors against the magnitude, with the values' histogram."""
        from matplotlib.figure import Figure

        figure = Figure((10, 5), layout="constrained")
        axes = figure.subplots()
        magnitudes = self.largest * 2.0 ** -(np.arange(len(self.shares)) + 0.5)
        for number, row in enumerate(self.rows):
            # There are ten colours.
            style = ("o-", "s--", "^:", "D-.")[number // 10 % 4]
            label = f"{row.name} ({row.sqnr:.1f} dB)"
            axes.plot(
                magnitudes,
                row.relative_errors,
                style,
                color=f"C{number % 10}",
                markersize=3,
                label=label,
            )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="magnitude",
            ylabel="mean relative error of rounding",
        )
        behind = axes.twinx()
        behind.bar(
            magnitudes, self.shares, width=0.3 * magnitudes, color="0.85", zorder=-1
        )
        behind.set_ylabel("share of the values")
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
        figure.legend(fontsize="small", loc="outside right upper")
        return figure


def report(
    formats: Sequence[NumberFormat],
    values: Any,
    *,
    num_octaves: int = 17,
    max_values: int = 200_000,
) -> Report:
    """Compares formats on your own weights or activations.

    Each format gets the scale that serves these values best, one for all of them.

    Args:
        formats: such as `posit(8, 1)`, `symmetric(8)`; without a scale of their own.
        values: a float array, or a pytree of them, taken together.
        num_octaves: how far below the largest value to look.
        max_values: of more, as many are drawn.

    Returns:
        A `Report`. Cost: each format is applied to the values some 130 times.

    Raises:
        ValueError: no formats, no values, values that are not finite, or all 0.

    Example:
        >>> from bilevel import number_formats
        >>> weights = jax.random.normal(jax.random.key(0), (10_000,))
        >>> formats = [number_formats.symmetric(8), number_formats.posit(8, 0)]
        >>> found = report(formats, weights)
        >>> [40 < row.sqnr < 42 for row in found.rows]
        [True, True]
    """
    x = _together(values, max_values)
    if not formats:
        raise ValueError("report: expected at least one format, got none.")
    largest = float(np.max(np.abs(x)))
    octave = np.floor(-np.log2(np.abs(x[x != 0]) / largest))
    counts = [np.mean(octave == k) for k in range(num_octaves)]
    rng = np.random.default_rng(0)
    tests = [
        largest * 2.0**-k * rng.uniform(0.5, 1, 2000).astype(np.float32)
        for k in range(num_octaves)
    ]
    rows = [_row(one, jnp.asarray(x), np.stack(tests)) for one in formats]
    return Report(tuple(rows), largest, np.array(counts))


def best_scale(number_format: NumberFormat, values: jax.Array) -> float:
    """The scale s > 0 of the least squared error of s round(x / s).

    Args:
        number_format: without a scale of its own.
        values: finite floats, not all 0.

    Example:
        >>> from bilevel import number_formats
        >>> values = jnp.array([-1.0, 0.5, 1.0])
        >>> abs(best_scale(number_formats.symmetric(2), values) - 2.5 / 3) < 0.01
        True
    """
    x = jnp.ravel(as_float("best_scale", values)).astype(jnp.float32)
    error = jax.jit(lambda s: _noise(number_format, s, x))
    rms, largest = float(jnp.sqrt(jnp.mean(x**2))), float(jnp.max(jnp.abs(x)))
    # Around the scale that fills the range, and where most values are near 1.
    fill = largest / max(abs(end) for end in number_format.range)
    scales = np.concatenate(
        [fill * 2.0 ** -np.arange(-1, 6, 0.125), rms * 2.0 ** np.arange(-8, 5, 0.25)]
    )
    for step in (0.25, 0.02):
        errors = [float(error(np.float32(s))) for s in scales]
        best = scales[int(np.argmin(errors))]
        scales = best * 2.0 ** np.linspace(-step, step, 13)
    errors = [float(error(np.float32(s))) for s in scales]
    return float(scales[int(np.argmin(errors))])


def _noise(number_format: NumberFormat, scale: Any, x: jax.Array) -> jax.Array:
    """Infinite where a value has no level: it is NaN or infinite there."""
    noise = jnp.sum((x - scaled(number_format, scale).round(x)) ** 2)
    return jnp.where(jnp.isnan(noise), jnp.inf, noise)


def _row(number_format: NumberFormat, x: jax.Array, tests: np.ndarray) -> Row:
    scale = best_scale(number_format, x)
    fitted = scaled(number_format, scale)
    rounded = fitted.round(x)
    signal = float(jnp.sum(x**2))
    decibel = lambda noise: float(10 * np.log10(signal / max(float(noise), 1e-30)))
    full = float(jnp.max(jnp.abs(x))) / max(abs(end) for end in number_format.range)
    flushed = jnp.sum((rounded == 0) & (x != 0)) / max(int(jnp.sum(x != 0)), 1)
    errors = np.abs(np.asarray(fitted.round(jnp.asarray(tests))) / tests - 1)
    return Row(
        name=number_format.name,
        bits=number_format.bits,
        scale=scale,
        sqnr=decibel(_noise(number_format, scale, x)),
        sqnr_of_range=decibel(_noise(number_format, full, x)),
        flushed=float(flushed),
        relative_errors=errors.mean(1),
    )


def _together(values: Any, most: int) -> np.ndarray:
    leaves = [np.ravel(as_float("report", x)) for x in jax.tree.leaves(values)]
    if not leaves or not sum(leaf.size for leaf in leaves):
        raise ValueError("report: expected values, got none.")
    x = np.concatenate(leaves).astype(np.float32)
    if not np.all(np.isfinite(x)):
        raise ValueError(
            f"report: {np.sum(~np.isfinite(x))} of {x.size} values are not finite."
        )
    if not np.any(x):
        raise ValueError("report: all values are 0.")
    if x.size > most:
        x = np.random.default_rng(0).choice(x, most, replace=False)
    return x
