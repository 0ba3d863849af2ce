"""Unrolled differentiation (iterative differentiation): through the solver's steps."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import symmetric_gradient
from bilevel.hypergradients.attach import by_program, by_pullback
from bilevel.hypergradients.base import (
    Active,
    Hypergradient,
    InnerProblem,
    Outer,
    Pullback,
    Theta,
    Trust,
    no_memory,
    plain_info,
)
from bilevel.inner_solvers import base as driver
from bilevel.inner_solvers.base import InnerInfo
from bilevel.iteration import Rematerialize
from bilevel.trees import Tree


def unrolled(
    *,
    mode: Literal["reverse", "forward"] = "reverse",
    rematerialize: Rematerialize = "none",
    mixed_mode: bool = False,
) -> Hypergradient:
    """Differentiates all `max_steps` steps of the inner solver.

    The program that is differentiated takes exactly `max_steps` steps, whatever the
    tolerance of the solver, so that its cost and its meaning do not depend on values.
    The initial point gets its gradient too (MAML).

    Args:
        mode: "reverse" keeps or recomputes the trajectory; "forward" carries the
            Jacobian dw/dx along, at a cost of dim(x) tangents per step and memory
            independent of the number of steps: for few outer variables.
        rematerialize: what reverse mode keeps, for T steps and P inner parameters:
            "none" all residuals, "step" T P and one recomputation, "segments" about
            2 sqrt(T) P and two.
        mixed_mode: differentiate gradients by jvp-of-grad (MixFlow-MG): same values,
            fewer residuals; not differentiable once more in forward mode.

    Returns:
        A `Hypergradient`.  Cost in reverse mode: about 2.7 g per step, 3.1 g with
        rematerialisation; forward mode about dim(x) g per step.

    What `trustworthy` promises: as for every rule, the error against the derivative of
    the *argmin*, `error <= rtol`.  Against the program that ran the result is exact to
    rounding, always; for a fixed horizon (MAML, learned schedules) that program is what
    one wants, and `trustworthy=False` merely says that it is not an argmin.  Under
    `jax.grad` only convergence of the forward pass is watched.

    Raises:
        ValueError: reverse mode through a solver whose steps contain inner loops
            (newton, lbfgs); forward mode with rematerialisation.

    Source: Franceschi et al. 2017 (ICML), algorithms 1 and 2; Kemaev et al. 2025,
    arXiv:2505.00793 (mixed mode); Griewank 1992 (segments).

    Example:
        >>> rule = unrolled(rematerialize="segments", mixed_mode=True)
    """
    if mode not in ("reverse", "forward"):
        raise ValueError(
            f'unrolled: mode must be "reverse" or "forward", got {mode!r}.'
        )
    check_rematerialize("unrolled", rematerialize)
    if mode == "forward" and (rematerialize != "none" or mixed_mode):
        raise ValueError(
            "unrolled: forward mode stores no trajectory; leave rematerialize and "
            "mixed_mode out."
        )

    def run(
        problem: InnerProblem, inner0: Tree, theta: Theta
    ) -> tuple[Tree, InnerInfo]:
        return run_steps(
            problem,
            inner0,
            theta,
            num_steps=problem.solver.max_steps,
            rematerialize=rematerialize,
            mixed_mode=mixed_mode,
            reverse=mode == "reverse",
        )

    def forward(
        problem: InnerProblem, inner0: Tree, active: Active
    ) -> tuple[Tree, InnerInfo, Any]:
        def of_active(values: Tree) -> tuple[Tree, InnerInfo]:
            return run(problem, inner0, active.build(values))

        if not jax.tree.leaves(active.values):  # nothing asks for a derivative
            return *of_active(active.values), None
        if mode == "reverse":
            inner, pull, info = jax.vjp(of_active, active.values, has_aux=True)
            return inner, info, pull

        def with_primal(values: Tree) -> tuple[Tree, tuple[Tree, InnerInfo]]:
            inner, info = of_active(values)
            return inner, (inner, info)

        jacobian, (inner, info) = jax.jacfwd(with_primal, has_aux=True)(active.values)
        return inner, info, jacobian

    def pullback(
        problem: InnerProblem,
        inner: Tree,
        active: Active,
        saved: Any,
        outer: Outer,
        memory: Any,
    ) -> Pullback:
        del problem, memory
        if mode == "reverse":
            cotangent = saved(outer.cotangent)[0]
        else:
            cotangent = _contract(outer.cotangent, saved, active.values)
        return Pullback(cotangent, plain_info())

    def attach(
        problem: InnerProblem, readout: Any, trust: Trust
    ) -> Callable[[Tree, Theta], tuple[Tree, InnerInfo]]:
        if mode == "forward":
            return by_pullback(rule, problem, readout, trust)
        return by_program(lambda w, theta: run(problem, w, theta), trust, "unrolled")

    rule = Hypergradient(
        name="unrolled",
        init=no_memory,
        forward=forward,
        pullback=pullback,
        attach=attach,
    )
    return rule


def check_rematerialize(name: str, rematerialize: str) -> None:
    """Raises `ValueError` for an unknown memory mode."""
    if rematerialize not in ("none", "step", "segments"):
        raise ValueError(
            f'{name}: rematerialize must be "none", "step" or "segments", got '
            f"{rematerialize!r}."
        )


@jax.named_scope("inner_solve")  # the names of a profile
def run_steps(
    problem: InnerProblem,
    inner0: Tree,
    theta: Theta,
    *,
    num_steps: int,
    detached_steps: int = 0,
    rematerialize: Rematerialize = "none",
    mixed_mode: bool = False,
    reverse: bool = True,
) -> tuple[Tree, InnerInfo]:
    """Exactly `num_steps` differentiable steps, after `detached_steps` that are not."""
    solver, oracle = problem
    if reverse and not solver.reverse_differentiable:
        raise ValueError(
            "the steps of this inner solver contain loops whose length depends on "
            "values (a line search, CG), which reverse mode cannot pass. Use "
            "hypergradients.implicit(), or unroll inner_solvers.gradient_descent; "
            'unrolled(mode="forward") works with every solver.'
        )
    if mixed_mode:
        oracle = oracle._replace(
            gradient=symmetric_gradient(oracle.value),
            value_and_gradient=lambda w, t: (
                jax.lax.stop_gradient(oracle.value(w, t)),
                symmetric_gradient(oracle.value)(w, t),
            ),
        )
    carry = driver.start(solver, oracle, inner0, theta)
    if detached_steps:
        frozen = jax.lax.stop_gradient((carry, theta))
        carry = driver.trajectory(
            solver, oracle, frozen[0], frozen[1], num_steps=detached_steps
        )
        carry = jax.lax.stop_gradient(carry)
    carry = driver.trajectory(
        solver,
        oracle,
        carry,
        theta,
        num_steps=num_steps,
        rematerialize=rematerialize,
    )
    info = driver.report(
        solver,
        oracle,
        *jax.lax.stop_gradient((carry, theta)),
        detached_steps + num_steps,
    )
    return carry.inner, info


def _contract(cotangent: Tree, jacobian: Tree, like: Tree) -> Tree:
    """v' Z for a Jacobian Z with the tree of `inner` outside, of `like` inside."""
    weights = jax.tree.leaves(cotangent)
    treedef = jax.tree.structure(cotangent)
    total = trees.zeros_like(like)
    for v, block in zip(weights, treedef.flatten_up_to(jacobian), strict=True):
        part = jax.tree.map(lambda z, v=v: jnp.tensordot(v, z, axes=v.ndim), block)
        total = trees.add(total, part)
    return total
