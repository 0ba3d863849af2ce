"""How an untrustworthy gradient shows under `jax.grad`: as a warning, or as NaN."""

import math
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp

from bilevel.hypergradients.base import Place, Trust
from bilevel.hypergradients.certificate import CURVATURE, REASONS, Certificate
from bilevel.trees import Tree


def caller() -> Place | None:
    """The innermost line on the stack that belongs neither to this library nor to JAX.

    A warning comes from a callback, whose own stack has lost it.
    """
    ours = str(Path(__file__).parents[1])
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        if not file.startswith(ours) and name not in ("jax", "jaxlib", "flax"):
            return Place(file, frame.f_lineno)
        frame = frame.f_back
    return None


def enforce(tree: Tree, report: Certificate, trust: Trust, rule: str) -> Tree:
    """Carries out `on_untrustworthy`: returns `tree`, with a warning, or NaN."""
    if trust.on_untrustworthy == "nan":
        # A factor, not a choice: transposed, `where(ok, x, nan)` would return zeros.
        factor = jnp.where(report.trustworthy, 1, jnp.nan)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)
    if trust.on_untrustworthy == "warn":
        jax.debug.callback(
            lambda reason, error: _warn(int(reason), float(error), trust, rule),
            report.reason,
            report.error,
        )
    return tree


# Against a singular Hessian none of it helps.
_ADVICE = (
    "Solve the inner problem more accurately (max_steps, rtol of the inner solver), "
    "raise the linear solver's cap, or use float64; "
)

_SEEN: Counter[tuple[Place | None, str, int]] = Counter()
_LOCK = threading.Lock()


def forget() -> None:
    """Forgets which lines were warned of: each warns anew (for tests)."""
    with _LOCK:
        _SEEN.clear()


def _warn(reason: int, error: float, trust: Trust, rule: str) -> None:
    """Warns for the first time, and at each power of ten, that a line fails a test.

    The text of a warning holds numbers, so that Python's own filter, which knows texts
    and lines, would let all of them through.
    """
    if reason == 0:
        return
    with _LOCK:
        _SEEN[trust.place, rule, reason] += 1
        times = _SEEN[trust.place, rule, reason]
    if str(times).strip("0") != "1":
        return
    estimate = "not estimated" if math.isinf(error) else f"estimated as {error:.1e}"
    again = "" if times == 1 else f" (for the {times}th time)"
    message = (
        f"untrustworthy gradient through an argmin ({rule} rule){again}: "
        f"{REASONS[reason]}. The relative error is {estimate}; rtol "
        f"is {trust.rtol:.1e}. {_ADVICE if reason != CURVATURE else ''}"
        "value_and_hypergradient reports the residuals. "
        'on_untrustworthy="ignore" silences this, "nan" returns NaN instead.'
    )
    if trust.place is None:
        warnings.warn(message, stacklevel=2)
    else:
        warnings.warn_explicit(message, UserWarning, *trust.place)
