"""The argmin as a differentiable function, and its hypergradient with a full report."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import (
    closures,
    compiled,
    derivatives,
    hypergradients,
    inner_solvers,
    trees,
)
from bilevel.hypergradients import certificate, watch
from bilevel.hypergradients.base import (
    Active,
    Hypergradient,
    InnerProblem,
    Outer,
    PullbackInfo,
    Theta,
    Trust,
    assert_pullback,
    require_dependence,
)
from bilevel.inner_solvers import InnerInfo, InnerSolver
from bilevel.problem import Batches, Objective, Problem
from bilevel.trees import Tree

Function = tuple[Callable[[Tree, Theta], Any], Theta, bool]
"""An objective as a function of `(inner, theta)` that closes over nothing, an example
of theta, and whether it has auxiliary output."""

Solve = Callable[..., tuple[Tree, InnerInfo]]
"""`solve(inner0, outer, batch=None) -> (inner, InnerInfo)`."""


def argmin(
    objective: Objective,
    inner_solver: InnerSolver | None = None,
    hypergradient: Hypergradient | None = None,
    *,
    has_aux: bool = False,
    rtol: float | None = None,
    on_untrustworthy: Literal["warn", "nan", "ignore"] = "warn",
    readout: Objective | None = None,
) -> Solve:
    """w*(x) = argmin over w of G(w, x, batch) as an ordinary differentiable function.

    The result may be used in any JAX program: `jit`, `grad`, `vmap`, in a Flax model,
    in another argmin.  Gradients flow to the outer variable, to the floating-point
    leaves of the batch, and to traced values that the objective closes over.  Which
    transformations a rule supports: README, "What works with what".

    Args:
        objective: G, `(inner, outer, batch) -> scalar`, or `(scalar, aux)`.
        inner_solver: None means `inner_solvers.newton()`.
        hypergradient: None means `hypergradients.implicit()`.
        has_aux: G returns auxiliary output; it comes back in `info.aux`, evaluated at
            the solution and differentiable.
        rtol: the relative error of a gradient beyond which it is untrustworthy; None
            means 1e-4 if all inner variables are float64, otherwise 1e-2.
        on_untrustworthy: what to do where the certificate of a gradient fails, since
            `jax.grad` returns nothing but the gradient: "warn" at run time, return
            "nan", or "ignore" (which also saves the two linear solves of the
            certificate).  The error is relative to |J' u| here; dF/dx is not known.
        readout: the outer function, `(inner, outer, batch) -> scalar`, for rules that
            nudge with it in full.

    Returns:
        `solve(inner0, outer, batch=None) -> (inner, info)`; `info` is an `InnerInfo`.
        With default settings the gradient's relative error is at most 1e-4 in float64
        up to a Hessian condition number of 1e4.

    Raises:
        ValueError: (when `solve` is traced) inner variables that are not floating
            point, an objective that returns no scalar, a rule that does not go with the
            solver, a derivative with respect to the initial point by a pointwise rule.

    Source: Blondel et al. 2022, arXiv:2105.15183, for the implicit rule.

    Example:
        >>> import jax.numpy as jnp
        >>> solve = argmin(lambda w, x, batch: jnp.sum((w - x**2) ** 2))
        >>> float(jax.grad(lambda x: solve(0.0, x)[0])(3.0))
        6.0
    """
    solver = inner_solvers.newton() if inner_solver is None else inner_solver
    rule = hypergradients.implicit() if hypergradient is None else hypergradient
    _check_settings(rtol, on_untrustworthy)

    def solve(inner0: Tree, outer: Tree, batch: Any = None) -> tuple[Tree, InnerInfo]:
        inner0 = _checked_inner(inner0)
        outer, batch = trees.as_arrays(outer), _batch_arrays(batch)
        _check_objective(objective, (inner0, outer, batch), has_aux, "inner")
        problem, theta, function = _prepare(
            objective, solver, has_aux, inner0, outer, batch
        )
        functions, outer_function = [function], None
        if readout is not None:
            _check_objective(readout, (inner0, outer, batch), False, "readout")
            outer_function, theta = _with_readout(readout, inner0, theta)
            functions.append((outer_function, theta, False))
        trust = Trust(_rtol(rtol, inner0), on_untrustworthy, watch.caller())

        def program(inner0: Tree, theta: Theta) -> tuple[Tree, InnerInfo]:
            solution = rule.attach(problem, outer_function, trust)
            inner, info = solution(inner0, theta)
            return inner, info._replace(aux=problem.oracle.aux(inner, theta))

        settings = ("argmin", solver, rule, tuple(trust))
        return _compiled(program, functions, settings, inner0)(inner0, theta)

    return solve


def _compiled(
    program: Callable[..., Any],
    functions: Sequence[Function],
    settings: Any,
    inner0: Tree,
) -> Callable[..., Any]:
    """`program` itself inside of `jit`; without, compiled once for equal programs.

    Args:
        program: a function of arrays.
        functions: the objectives in it.
        settings: all else that decides what it does.
        inner0: an example of the objectives' first argument.
    """
    if compiled.is_staged():
        return program
    try:
        keys = [
            compiled.objective_key(function, inner0, theta, has_aux=has_aux)
            for function, theta, has_aux in functions
        ]
        key = (compiled.signature(settings), *keys)
    except compiled.Unknown:
        return program
    return compiled.shared(key, program)


class Hyper(NamedTuple):
    """What `value_and_hypergradient` returns.

    Attributes:
        value: `[]`, F(w, x).
        gradient: a tree like the outer variable, dF(w*(x), x)/dx.
        inner: w, the solution of the inner problem.
        aux: the auxiliary output of the outer objective, or None.
        info: how far to trust it.
        memory: pass it to the next call to warm-start the adjoint.
    """

    value: jax.Array
    gradient: Tree
    inner: Tree
    aux: Any
    info: "HyperInfo"
    memory: Any


class HyperInfo(NamedTuple):
    """Diagnostics of one hypergradient.

    Attributes:
        inner: of the inner solve: residual, steps, convergence, aux.
        pullback: of the rule: adjoint residual, steps, curvature, bias.
        error: estimated error relative to |dF/dx| + |J' u|; nan if no estimate could
            be made, None (unchecked) with `certify=False`.
        trustworthy: `error` is certified to be at most `rtol`; None (unchecked) with
            `certify=False`.
        reason: `[]` int32, the index in `hypergradients.certificate.REASONS` of the
            first test that failed, 0 if none did; None (unchecked) likewise.
    """

    inner: InnerInfo
    pullback: PullbackInfo
    error: jax.Array | None
    trustworthy: jax.Array | None
    reason: jax.Array | None


def value_and_hypergradient(
    problem: Problem,
    inner_solver: InnerSolver | None = None,
    hypergradient: Hypergradient | None = None,
    *,
    rtol: float | None = None,
    certify: bool = True,
) -> Callable[..., Hyper]:
    """F(w*(x), x) and its gradient in x, with everything reported.

    Args:
        problem: the two objectives.
        inner_solver: None means `inner_solvers.newton()`.
        hypergradient: None means `hypergradients.implicit()`.
        rtol: what `trustworthy` promises; None means 1e-4 if all inner variables are
            float64, otherwise 1e-2.
        certify: estimate the error (see `hypergradients.certificate`), for one to
            three linear solves more, none if the rule's own solve already failed.
            Without it `error`, `trustworthy` and `reason` are None: unchecked.

    Returns:
        `evaluate(inner0, outer, batches=Batches(), memory=None) -> Hyper`.  It can be
        transformed further; `jax.jacfwd` of the gradient is the outer Hessian.

    Raises:
        ValueError: (when traced) variables that are not floating point, objectives that
            return no scalar, or an inner objective that does not depend on the outer
            variable.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = Problem(
        ...     inner_objective=lambda w, x, batch: (w - x) ** 2,
        ...     outer_objective=lambda w, x, batch: w**2,
        ... )
        >>> out = value_and_hypergradient(problem)(0.0, 3.0)
        >>> float(out.value), float(out.gradient), bool(out.info.trustworthy)
        (9.0, 6.0, True)
    """
    solver = inner_solvers.newton() if inner_solver is None else inner_solver
    rule = hypergradients.implicit() if hypergradient is None else hypergradient
    _check_settings(rtol, "ignore")

    def evaluate(
        inner0: Tree, outer: Tree, batches: Batches = Batches(), memory: Any = None
    ) -> Hyper:
        inner0 = _checked_inner(inner0)
        outer = trees.as_arrays(outer)
        trees.require_float(outer, "outer")
        if not isinstance(batches, Batches):
            raise ValueError(
                "batches must be a bilevel.Batches(inner=..., outer=...), got "
                f"{type(batches).__name__}. Write Batches(train, validation)."
            )
        batches = Batches(*map(_batch_arrays, batches))
        inner_args = (inner0, outer, batches.inner)
        _check_objective(
            problem.inner_objective, inner_args, problem.inner_has_aux, "inner"
        )
        outer_args = (inner0, outer, batches.outer)
        _check_objective(
            problem.outer_objective, outer_args, problem.outer_has_aux, "outer"
        )
        trust = _rtol(rtol, inner0) if certify else None
        lower, theta, inside = _prepare(
            problem.inner_objective,
            solver,
            problem.inner_has_aux,
            inner0,
            outer,
            batches.inner,
        )
        outer_function, outer_theta = _explicit(
            problem.outer_objective, inner0, outer, batches.outer
        )
        outside = (outer_function, outer_theta, problem.outer_has_aux)
        settings = (rule, problem.outer_has_aux, trust)
        program = functools.partial(_evaluate, lower, outer_function, *settings)
        call = _compiled(
            program,
            [inside, outside],
            ("value_and_hypergradient", solver, settings),
            inner0,
        )
        return call(inner0, (theta, outer_theta), memory)

    return evaluate


def _evaluate(
    lower: InnerProblem,
    outer_function: Callable[[Tree, Theta], Any],
    rule: Hypergradient,
    has_aux: bool,
    rtol: float | None,
    inner0: Tree,
    thetas: tuple[Theta, Theta],
    memory: Any,
) -> Hyper:
    """One hypergradient; certified if `rtol` is given."""
    theta, outer_theta = thetas
    outer = theta.outer
    _require_dependence(lower, inner0, theta)
    active = Active(outer, lambda values: theta._replace(outer=values))
    inner, info, saved = rule.forward(lower, inner0, active)

    def outer_objective(w: Tree, x: Tree) -> tuple[jax.Array, Any]:
        out = outer_function(w, outer_theta._replace(outer=x))
        return out if has_aux else (out, None)

    (value, aux), (cotangent, direct) = jax.value_and_grad(
        outer_objective, argnums=(0, 1), has_aux=True
    )(inner, outer)

    def gradients(w: Tree) -> tuple[Tree, Tree]:
        x = jax.lax.stop_gradient(outer)
        return jax.grad(lambda w, x: outer_objective(w, x)[0], argnums=(0, 1))(w, x)

    upper = Outer(
        cotangent=cotangent,
        readout=lambda w, t: outer_objective(w, t.outer)[0],
        gradient=gradients,
    )
    # Nothing to start from is not zero: that would cost a product with H.
    start = () if memory is None else memory
    with jax.named_scope("adjoint"):
        result = rule.pullback(lower, inner, active, saved, upper, start)
    assert_pullback(result, inner, active)
    report = (None, None, None)
    if rtol is not None:
        report = certificate.certify(lower, inner, active, upper, result, rtol)
    info = info._replace(aux=lower.oracle.aux(inner, theta))
    return Hyper(
        value=value,
        gradient=trees.add(direct, result.cotangent),
        inner=inner,
        aux=aux,
        info=HyperInfo(info, result.info, *report),
        memory=result.memory,
    )


def _prepare(
    objective: Objective,
    solver: InnerSolver,
    has_aux: bool,
    inner0: Tree,
    outer: Tree,
    batch: Any,
) -> tuple[InnerProblem, Theta, Function]:
    """The inner problem as a function of explicit arguments only."""
    explicit, theta = _explicit(objective, inner0, outer, batch)
    oracle = derivatives.oracle(explicit, has_aux=has_aux)
    return InnerProblem(solver, oracle), theta, (explicit, theta, has_aux)


def _explicit(
    objective: Objective, inner0: Tree, outer: Tree, batch: Any
) -> tuple[Callable[[Tree, Theta], Any], Theta]:
    """An objective as a function of `(inner, theta)` that closes over nothing."""
    hoisted, constants = closures.hoist(objective, inner0, outer, batch)
    own = len(constants)  # a readout may bring more

    def explicit(inner: Tree, theta: Theta) -> Any:
        return hoisted(theta.constants[:own], inner, theta.outer, theta.batch)

    return explicit, Theta(outer, batch, constants)


def _with_readout(
    readout: Objective, inner0: Tree, theta: Theta
) -> tuple[Callable[[Tree, Theta], jax.Array], Theta]:
    """Hoists the readout's constants behind those of the objective."""
    hoisted, more = closures.hoist(readout, inner0, theta.outer, theta.batch)
    start = len(theta.constants)

    def explicit(inner: Tree, t: Theta) -> jax.Array:
        return hoisted(t.constants[start:], inner, t.outer, t.batch)

    return explicit, theta._replace(constants=theta.constants + more)


def _checked_inner(inner0: Tree) -> Tree:
    trees.require_float(inner0, "inner")
    if not jax.tree.leaves(inner0):
        raise ValueError("the inner variable has no leaves: nothing to minimise over.")
    return trees.as_arrays(inner0)


def _batch_arrays(batch: Any) -> Any:
    """NumPy arrays and Python numbers become arrays; typed keys pass as they are."""
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), batch
    )


def _rtol(rtol: float | None, inner: Tree) -> float:
    if rtol is not None:
        return rtol
    doubles = all(x.dtype == jnp.float64 for x in jax.tree.leaves(inner))
    return 1e-4 if doubles else 1e-2


def _check_settings(rtol: float | None, on_untrustworthy: str) -> None:
    if rtol is not None and not 0 < rtol < 1:
        raise ValueError(f"rtol must lie in (0, 1), got {rtol}.")
    if on_untrustworthy not in ("warn", "nan", "ignore"):
        raise ValueError(
            'on_untrustworthy must be "warn", "nan" or "ignore", got '
            f"{on_untrustworthy!r}."
        )


def _check_objective(
    objective: Objective, arguments: tuple[Any, ...], has_aux: bool, name: str
) -> None:
    out = jax.eval_shape(lambda *args: objective(*args), *arguments)
    what = f"the {name} objective"
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(
                f"{what} must return (scalar, aux), since has_aux was set; got "
                f"{jax.tree.structure(out)}."
            )
        out = out[0]
    elif isinstance(out, tuple):
        raise ValueError(
            f"{what} must return a scalar, got a tuple of {len(out)}. If it returns "
            "(scalar, aux), say so: has_aux=True in argmin, inner_has_aux or "
            "outer_has_aux in Problem."
        )
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or leaves[0].shape != ():
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(
            f"{what} must return a scalar (shape ()), got shapes {shapes}. Reduce it, "
            "for instance with jnp.mean."
        )
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise ValueError(
            f"{what} must return a floating-point scalar, got {leaves[0].dtype}."
        )


def _require_dependence(problem: InnerProblem, inner0: Tree, theta: Theta) -> None:
    if not jax.tree.leaves(theta.outer):
        raise ValueError("the outer variable has no leaves: nothing to differentiate.")
    outer = Active(theta.outer, lambda values: theta._replace(outer=values))
    require_dependence(problem, inner0, outer)
