"""Two ways to make the solution of an inner problem differentiable by a rule.

`by_pullback` installs a pull-back as a custom vjp; `by_program` lets autodiff run
through the solver's own steps.  (The implicit rule has a third, a custom jvp.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from bilevel import trees
from bilevel.derivatives import zero_cotangent
from bilevel.hypergradients import certificate, watch
from bilevel.hypergradients.base import (
    INITIAL_POINT,
    Active,
    Hypergradient,
    InnerProblem,
    Outer,
    Theta,
    Trust,
    assert_pullback,
    perturbed,
    require_dependence,
)
from bilevel.inner_solvers.base import InnerInfo
from bilevel.trees import Tree


def by_pullback(
    rule: Hypergradient, problem: InnerProblem, readout: Any, trust: Trust
) -> Callable[[Tree, Theta], tuple[Tree, InnerInfo]]:
    """The solution with `rule.pullback` as its custom vjp; reverse mode only.

    Only leaves of theta that are being differentiated take part in the pull-back.

    Raises:
        ValueError: the initial point is differentiated by a pointwise rule.
    """

    def forward_pass(inner0: Tree, theta: Theta, active: Active) -> Any:
        del theta
        return rule.forward(problem, inner0, active)

    @jax.custom_vjp
    def solution(inner0: Tree, theta: Theta) -> tuple[Tree, InnerInfo]:
        nothing = Active([], lambda _: theta)
        inner, info, _ = forward_pass(inner0, theta, nothing)
        return inner, info

    def forward(inner0: Any, theta: Any) -> tuple[Any, Any]:
        start, _ = _split(inner0)
        if any(p.perturbed for p in _primals(inner0)):
            raise ValueError(INITIAL_POINT.format(name=rule.name))
        leaves, flags = _split(theta)
        active = perturbed(leaves, flags)
        if any(flags) and trust.on_untrustworthy != "ignore":
            require_dependence(problem, start, active)
        inner, info, saved = forward_pass(start, leaves, active)

        def backward(
            start: Tree, theta: Theta, inner: Tree, saved: Any, v: Tree
        ) -> Any:
            active = perturbed(theta, flags)
            outer = Outer(v, readout)
            memory = rule.init(inner)
            with jax.named_scope("adjoint"):
                result = rule.pullback(problem, inner, active, saved, outer, memory)
            assert_pullback(result, inner, active)
            cotangent = result.cotangent
            if trust.on_untrustworthy != "ignore":
                report = certificate.certify(
                    problem, inner, active, outer, result, trust.rtol
                )
                cotangent = watch.enforce(cotangent, report, trust, rule.name)
            return trees.zeros_like(start), _scatter(theta, flags, cotangent)

        # A Partial carries the static flags from the forward to the backward pass.
        saved = jax.tree_util.Partial(backward, start, leaves, inner, saved)
        return (inner, info), saved

    def backward(saved: Any, cotangents: Any) -> Any:
        return saved(jax.tree.map(_dense, cotangents[0], is_leaf=_is_zero))

    solution.defvjp(forward, backward, symbolic_zeros=True)
    return solution


def by_program(
    run: Callable[[Tree, Theta], tuple[Tree, InnerInfo]], trust: Trust, name: str
) -> Callable[[Tree, Theta], tuple[Tree, InnerInfo]]:
    """The solution as the program that computes it, differentiated by autodiff.

    Autodiff offers no place to certify the gradient; what is watched is whether the
    program ended at a solution.
    """

    def solution(inner0: Tree, theta: Theta) -> tuple[Tree, InnerInfo]:
        inner, info = run(inner0, theta)
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


def _scatter(theta: Theta, flags: tuple[bool, ...], values: list[Any]) -> Theta:
    leaves, treedef = jax.tree.flatten(theta)
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
