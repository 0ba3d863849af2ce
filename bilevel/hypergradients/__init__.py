"""Rules that pull a cotangent back through an argmin; any goes with any solver."""

from bilevel.hypergradients import stencils as stencils
from bilevel.hypergradients.base import PullbackInfo as PullbackInfo
from bilevel.hypergradients.implicit import implicit as implicit
from bilevel.hypergradients.nudged import nudged as nudged
from bilevel.hypergradients.nudged_by_element import (
    nudged_by_element as nudged_by_element,
)
from bilevel.hypergradients.one_step import one_step as one_step
from bilevel.hypergradients.rule import Hypergradient as Hypergradient
from bilevel.hypergradients.truncated import truncated as truncated
from bilevel.hypergradients.unrolled import unrolled as unrolled

__all__ = [
    "Hypergradient",
    "PullbackInfo",
    "implicit",
    "nudged",
    "nudged_by_element",
    "one_step",
    "stencils",
    "truncated",
    "unrolled",
]
