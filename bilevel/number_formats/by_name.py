"""Formats by name, for settings and tables."""

import re

from bilevel.number_formats.codebook import binary, ternary
from bilevel.number_formats.integer import affine, fixed_point, symmetric
from bilevel.number_formats.minifloat import MINIFLOATS, of_ml_dtypes
from bilevel.number_formats.number_format import NumberFormat
from bilevel.number_formats.posit import posit
from bilevel.number_formats.power_of_two import power_of_two

_PATTERNS = {
    r"posit<(\d+),(\d+)>": posit,
    r"posit(\d+)_(\d+)": posit,  # for flags, whose commas separate
    r"int(\d+)": symmetric,
    r"affine(\d+)": affine,
    r"unsigned(\d+)": lambda bits: affine(bits, signed=False),
    r"Q(-?\d+)\.(-?\d+)": fixed_point,
    r"binary": binary,
    r"ternary": ternary,
    r"float8_e8m0fnu": power_of_two,
}


def by_name(which: str | NumberFormat, *, saturating: bool = False) -> NumberFormat:
    """Returns a format by its name; one of your own passes through.

    Args:
        which: `posit<8,2>` (`posit8_2` in flags), `int4` (symmetric), `affine8`,
            `unsigned8`, `Q1.6`, `binary`, `ternary`, or a minifloat by its name in
            ml_dtypes: `float8_e4m3fn`, `float4_e2m1fn`, `bfloat16`, ... (see
            `MINIFLOATS`).
        saturating: of minifloats, as in `minifloat`; the others saturate anyway.

    Raises:
        ValueError: there is none of this name, or with these numbers.

    Example:
        >>> by_name("posit<8,1>").range
        (-4096.0, 4096.0)
        >>> by_name("int4").bits
        4
    """
    if isinstance(which, NumberFormat):
        return which
    if which in MINIFLOATS:
        return of_ml_dtypes(which, saturating=saturating)
    for pattern, make in _PATTERNS.items():
        found = re.fullmatch(pattern, which)
        if found:
            return make(*map(int, found.groups()))
    raise ValueError(
        f"there is no number format {which!r}; expected posit<n,es>, int<n>, "
        "affine<n>, unsigned<n>, Q<m>.<n>, binary, ternary, or one of "
        f"{', '.join(MINIFLOATS)}."
    )
