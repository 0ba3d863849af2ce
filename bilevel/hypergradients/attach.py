"""Two ways to make the solution of an inner problem differentiable by a rule.

`by_pullback` installs a pull-back as a custom vjp; `by_program` lets autodiff run
through the solver's own steps.  (The implicit rule has a third, a custom jvp.)
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from bilevel import trees
from bilevel.derivatives import zero_cotangent
from bilevel.hypergradients import certificate, watch
from bilevel.hypergradients.base import (
    INITIAL_POINT,
    OuterObjective,
    Solved,
    Trust,
    assert_pullback,
    at_solution,
)
from bilevel.inner_problem import (
    Differentiated,
    InnerProblem,
    Parameters,
    perturbed,
    require_dependence,
)
from bilevel.inner_solvers.driver import InnerInfo
from bilevel.trees import Tree

if TYPE_CHECKING:
    from bilevel.hypergradients.rule import Hypergradient


def by_pullback(
    rule: "Hypergradient",
    problem: InnerProblem,
    function: Callable[[Tree, Parameters], jax.Array] | None,
    trust: Trust,
) -> Callable[[Tree, Parameters], tuple[Tree, InnerInfo]]:
    """The solution with `rule.pullback` as its custom vjp; reverse mode only.

    Only those leaves of the parameters take part that are being differentiated.

    Args:
        rule: any.
        problem: the inner problem.
        function: the outer objective, or None.
        trust: what becomes of a gradient that cannot be trusted.

    Raises:
        ValueError: the initial point is differentiated.
    """

    @jax.custom_vjp
    def solution(inner0: Tree, parameters: Parameters) -> tuple[Tree, InnerInfo]:
        nothing = Differentiated([], lambda _: parameters)
        solved, info = rule.forward(problem, inner0, nothing)
        return solved.inner, info

    def forward(inner0: Any, parameters: Any) -> tuple[Any, Any]:
        start, _ = _split(inner0)
        if any(p.perturbed for p in _primals(inner0)):
            raise ValueError(INITIAL_POINT.format(name=rule.name))
        values, flags = _split(parameters)
        differentiated = perturbed(values, flags)
        if any(flags) and trust.on_untrustworthy != "ignore":
            unknowns = problem.start(start, values)
            require_dependence(problem, unknowns, differentiated)
        solved, info = rule.forward(problem, start, differentiated)

        def pull(
            start: Tree, values: Parameters, inner: Tree, kept: Any, v: Tree
        ) -> tuple[Tree, Parameters]:
            solved = at_solution(Solved(problem, inner, perturbed(values, flags), kept))
            outer_objective = OuterObjective(v, function)
            with jax.named_scope("adjoint"):
                result = rule.pullback(solved, outer_objective, None)
            assert_pullback(result, solved)
            cotangent = result.cotangent
            if trust.on_untrustworthy != "ignore":
                report = certificate.certify(
                    solved, outer_objective, result, trust.rtol
                )
                cotangent = watch.enforce(cotangent, report, trust, rule.name)
            return trees.zeros_like(start), _scatter(values, flags, cotangent)

        # Between the passes JAX keeps arrays only.  A Partial is a tree of arrays that
        # carries a function along: `pull`, which knows the static flags.
        kept = (start, values, solved.inner, solved.residuals)
        return (solved.inner, info), jax.tree_util.Partial(pull, *kept)

    def backward(pull: Any, cotangents: Any) -> Any:
        return pull(jax.tree.map(_dense, cotangents[0], is_leaf=_is_zero))

    solution.defvjp(forward, backward, symbolic_zeros=True)
    return solution


def by_program(
    run: Callable[[Tree, Parameters], tuple[Tree, InnerInfo]], trust: Trust, name: str
) -> Callable[[Tree, Parameters], tuple[Tree, InnerInfo]]:
    """The solution as the program that computes it, differentiated by autodiff.

    Autodiff offers no place to certify the gradient; what is watched is whether the
    program ended at a solution.
    """

    def solution(inner0: Tree, parameters: Parameters) -> tuple[Tree, InnerInfo]:
        inner, info = run(inner0, parameters)
        info = jax.lax.stop_gradient(info)
        if trust.on_untrustworthy == "ignore":
            return inner, info
        return _watched(inner, info), info

    @jax.custom_jvp
    def _watched(inner: Tree, info: InnerInfo) -> Tree:
        del info
        return inner

    @_watched.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        inner, info = primals
        report = certificate.of_solve(info)
        return inner, watch.enforce(tangents[0], report, trust, name)

    return solution


def detached(inner0: Tree, name: str) -> Tree:
    """The initial point as a constant.

    Raises:
        ValueError: it is being differentiated, and would silently get a zero gradient.
    """

    @jax.custom_jvp
    def constant(inner0: Tree) -> Tree:
        return inner0

    def rule(primals: Any, tangents: Any) -> Any:
        if any(not _is_zero(t) for t in jax.tree.leaves(tangents, is_leaf=_is_zero)):
            raise ValueError(INITIAL_POINT.format(name=name))
        return primals[0], trees.zeros_like(primals[0])

    constant.defjvp(rule, symbolic_zeros=True)
    return jax.lax.stop_gradient(constant(inner0))


def _is_primal(x: Any) -> bool:
    return isinstance(x, CustomVJPPrimal)


def _primals(tree: Any) -> list[CustomVJPPrimal]:
    return jax.tree.leaves(tree, is_leaf=_is_primal)


def _split(tree: Any) -> tuple[Any, tuple[bool, ...]]:
    """Values, and which leaves are being differentiated."""
    values = jax.tree.map(lambda p: p.value, tree, is_leaf=_is_primal)
    flags = tuple(
        bool(p.perturbed) and jnp.issubdtype(p.value.dtype, jnp.inexact)
        for p in _primals(tree)
    )
    return values, flags


def _scatter(
    parameters: Parameters, flags: tuple[bool, ...], values: list[Any]
) -> Parameters:
    leaves, treedef = jax.tree.flatten(parameters)
    rest = iter(values)
    filled = [
        next(rest) if flag else zero_cotangent(leaf)
        for flag, leaf in zip(flags, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, filled)


def _is_zero(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


def _dense(x: Any) -> Any:
    return jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x
