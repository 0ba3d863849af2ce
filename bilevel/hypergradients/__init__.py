"""Rules that pull a cotangent back through an argmin; any goes with any solver."""

from bilevel.hypergradients.base import PullbackInfo as PullbackInfo
from bilevel.hypergradients.implicit import implicit as implicit
from bilevel.hypergradients.nudged import nudged as nudged
from bilevel.hypergradients.one_step import one_step as one_step
from bilevel.hypergradients.rule import Hypergradient as Hypergradient
from bilevel.hypergradients.truncated import truncated as truncated
from bilevel.hypergradients.unrolled import unrolled as unrolled

__all__ = [
    "Hypergradient",
    "PullbackInfo",
    "implicit",
    "nudged",
    "one_step",
    "truncated",
    "unrolled",
]
