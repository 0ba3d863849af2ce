"""Number formats of few bits: values, codes, and how numbers are rounded to them."""

from bilevel.number_formats.by_name import by_name as by_name
from bilevel.number_formats.codebook import binary as binary
from bilevel.number_formats.codebook import codebook as codebook
from bilevel.number_formats.codebook import ternary as ternary
from bilevel.number_formats.integer import affine as affine
from bilevel.number_formats.integer import fixed_point as fixed_point
from bilevel.number_formats.integer import symmetric as symmetric
from bilevel.number_formats.minifloat import MINIFLOATS as MINIFLOATS
from bilevel.number_formats.minifloat import minifloat as minifloat
from bilevel.number_formats.number_format import NumberFormat as NumberFormat
from bilevel.number_formats.posit import posit as posit
from bilevel.number_formats.power_of_two import power_of_two as power_of_two
from bilevel.number_formats.report import Report as Report
from bilevel.number_formats.report import best_scale as best_scale
from bilevel.number_formats.report import report as report
from bilevel.number_formats.scaled import scaled as scaled
from bilevel.number_formats.stochastic_round import (
    stochastic_round as stochastic_round,
)

__all__ = [
    "MINIFLOATS",
    "NumberFormat",
    "Report",
    "affine",
    "best_scale",
    "binary",
    "by_name",
    "codebook",
    "fixed_point",
    "minifloat",
    "posit",
    "power_of_two",
    "report",
    "scaled",
    "stochastic_round",
    "symmetric",
    "ternary",
]
