"""What a pull-back rule is, and what it reports.

Signs: with w*(x) = argmin_w G(w, x), H = d2G/dw2 and J = d2G/dw dx, the derivative of
the argmin is dw*/dx = -H^-1 J, and the pull-back of a cotangent v is -J' u, H u = v.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel import closures, trees
from bilevel.derivatives import Oracle
from bilevel.inner_solvers.base import InnerInfo, InnerSolver
from bilevel.trees import Tree


class Theta(NamedTuple):
    """All that an inner objective depends on besides the inner variable.

    Attributes:
        outer: the outer variable x.
        batch: the data.
        constants: the values its function closed over, hoisted into arguments.
    """

    outer: Tree
    batch: Any
    constants: list[Any]


class InnerProblem(NamedTuple):
    """min over w of G(w, theta), with the solver to use."""

    solver: InnerSolver
    oracle: Oracle


class Active(NamedTuple):
    """The part of theta that is differentiated.

    Attributes:
        values: a tree of floating-point arrays.
        build: `values -> Theta`.
    """

    values: Tree
    build: Callable[[Tree], Theta]


class Outer(NamedTuple):
    """What a rule is told of the outer objective.

    Attributes:
        cotangent: v = dF/dw at the solution.
        readout: F itself, `(inner, theta) -> []`, or None if it is not known.
        gradient: `inner -> (dF/dw, dF/dx)`, the latter a tree like `Active.values`, for
            certificates; None if only the cotangent is known.
    """

    cotangent: Tree
    readout: Callable[[Tree, Theta], jax.Array] | None = None
    gradient: Callable[[Tree], tuple[Tree, Tree]] | None = None


class PullbackInfo(NamedTuple):
    """How a pull-back went; scalars, and None for what the rule does not know.

    Attributes:
        residual_norm: of the adjoint equation, |H u - v| / |v| (implicit: recomputed;
            nudged: from the residuals of the two states).
        error: estimated relative error of the adjoint u.
        num_steps: `[]` int32, iterations spent on it.
        converged: the adjoint equation, or the nudged problems, were solved to the
            tolerance asked for; None for a rule that solves none.
        positive_definite: no negative curvature was met; None for a rule that does not
            look at curvature.
        bias: estimated relative bias of the rule against the derivative of the argmin,
            0 for exact rules.
    """

    residual_norm: jax.Array | None
    error: jax.Array | None
    num_steps: jax.Array
    converged: jax.Array | None
    positive_definite: jax.Array | None
    bias: jax.Array | None


class Pullback(NamedTuple):
    """The result of a pull-back.

    Attributes:
        cotangent: (dw*/dx)' v, a tree like `Active.values`.
        info: how it went.
        adjoint: u, a tree like the inner variable, where the rule has one: from it the
            certificate starts.  None otherwise.
        memory: what the next pull-back starts from, or (); of any kind.
        precondition: an approximate inverse of H, used by the certificate too, or None.
        damping: the linear system was (H + damping I) u = v.
    """

    cotangent: Tree
    info: PullbackInfo
    adjoint: Tree | None = None
    memory: Any = ()
    precondition: Callable[[Tree], Tree] | None = None
    damping: float = 0.0


class Place(NamedTuple):
    """A line of a user's program."""

    file: str
    line: int


class Trust(NamedTuple):
    """The settings and the channel of a certificate under `jax.grad`.

    Attributes:
        rtol: the relative error that `trustworthy` promises not to be exceeded.
        on_untrustworthy: "warn", "nan" or "ignore".
        place: the line that a warning points at, where the solution was asked for.
    """

    rtol: float
    on_untrustworthy: str
    place: Place | None = None


class Hypergradient(NamedTuple):
    """A rule that pulls a cotangent back through an argmin.

    Attributes:
        name: as in the literature.
        init: `inner -> memory`, zeros to warm-start from.
        forward: `(problem, inner0, active) -> (inner, InnerInfo, saved)`: runs the
            inner solver; what a trajectory rule needs later is in `saved`.
        pullback: `(problem, inner, active, saved, outer, memory) -> Pullback`.
        attach: `(problem, readout, trust) -> f`, with
            `f(inner0, theta) -> (inner, InnerInfo)` differentiable by this rule.
    """

    name: str
    init: Callable[[Tree], Any]
    forward: Callable[[InnerProblem, Tree, Active], tuple[Tree, InnerInfo, Any]]
    pullback: Callable[[InnerProblem, Tree, Active, Any, Outer, Any], Pullback]
    attach: Callable[[InnerProblem, Any, Trust], Callable[[Tree, Theta], Any]]


def assert_pullback(result: Pullback, inner: Tree, active: Active) -> None:
    """A rule's result has the shapes that the rest of the library takes for granted.

    A scalar cotangent would be added to dF/dx by broadcasting, without an error.

    Args:
        result: of `rule.pullback`.
        inner: w, which an adjoint is like.
        active: what was differentiated, which the cotangent is like.

    Raises:
        AssertionError: naming the leaf; it is the rule's fault, not its user's.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(result.cotangent, active.values)
    if result.adjoint is not None:
        chex.assert_trees_all_equal_shapes_and_dtypes(result.adjoint, inner)


def no_memory(inner: Tree) -> tuple[()]:
    """The memory of a rule that has none."""
    del inner
    return ()


def plain_info() -> PullbackInfo:
    """The report of a rule that solves no adjoint equation."""
    return PullbackInfo(
        residual_norm=None,
        error=None,
        num_steps=jnp.zeros((), jnp.int32),
        converged=None,
        positive_definite=None,
        bias=None,
    )


def everything(theta: Theta) -> Active:
    """All floating-point leaves of theta as active."""
    floats, merge = trees.split_floats(theta)
    return Active(floats, merge)


def perturbed(theta: Theta, flags: Sequence[bool]) -> Active:
    """The leaves of theta that are being differentiated, as active.

    Args:
        theta: with leaves of any dtype.
        flags: for each leaf, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: one of them is complex: its gradient would silently be zero.
    """
    leaves, treedef = jax.tree.flatten(theta)
    for (path, leaf), flag in zip(
        jax.tree_util.tree_leaves_with_path(theta), flags, strict=True
    ):
        if flag and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                "a complex value is being differentiated through an argmin: "
                f"{leaf.dtype}{list(leaf.shape)} at {jax.tree_util.keystr(path)}. Pass "
                "its real and imaginary parts as two real arrays and build the complex "
                "one inside of the objective, or put jax.lax.stop_gradient around it."
            )
    places = [
        i
        for i, (x, f) in enumerate(zip(leaves, flags, strict=True))
        if f and trees.is_float(x)
    ]

    def build(values: list[Any]) -> Theta:
        merged = list(leaves)
        for i, value in zip(places, values, strict=True):
            merged[i] = value
        return jax.tree.unflatten(treedef, merged)

    return Active([leaves[i] for i in places], build)


def optimality(problem: InnerProblem, active: Active) -> Callable[[Tree, Tree], Tree]:
    """The optimality map as a function of (inner, active values)."""
    return lambda inner, values: problem.solver.optimality(
        problem.oracle, inner, active.build(values)
    )


def require_dependence(problem: InnerProblem, inner: Tree, active: Active) -> None:
    """Raises `ValueError` if the solution cannot depend on what is differentiated."""
    residual = optimality(problem, active)
    if not closures.depends_on(residual, (inner, active.values), 1):
        raise ValueError(
            "the inner solution does not depend on the outer variable: the gradient of "
            "the inner objective contains no leaf of it, so that the hypergradient "
            "through the argmin would be zero. Check that the inner objective uses its "
            "second argument. An outer variable that enters only through the initial "
            "point (MAML) needs hypergradients.unrolled() and jax.grad over argmin."
        )


INITIAL_POINT = (
    "the initial inner variable is being differentiated, but the {name} rule gives the "
    "derivative of the argmin, which does not depend on where the solver started: its "
    "gradient would silently be zero. If an initialisation is what you learn (MAML), "
    "use hypergradients.unrolled() in reverse mode; if it is only a warm start, pass "
    "jax.lax.stop_gradient(inner)."
)
