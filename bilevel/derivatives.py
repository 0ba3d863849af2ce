"""First and second derivatives of objectives: the only file that nests derivatives.

Notation: H = d2G/dw2 (the Hessian in the inner variable w), J = d2G/dw dp (the mixed
derivative), so that J' u = d/dp <dG/dw, u> has the tree of p.  Everything an objective
depends on besides w is one tree p, its parameters.

Costs are in gradient evaluations ("g"): a Hessian-vector product as jvp of grad is
about 1.5 g, one application of a linearised gradient about 1 g.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import trees
from bilevel.trees import Tree

__all__ = ["Oracle", "gauss_newton", "hvp", "mixed_jvp", "mixed_vjp"]


class Oracle(NamedTuple):
    """What an inner solver may ask of the function that it minimises.

    Attributes:
        value: `(inner, parameters) -> []`.
        gradient: `(inner, parameters) -> tree like inner`.
        value_and_gradient: both, at the cost of one.
        aux: `(inner, parameters) -> aux` of the objective, None if it has none.
        tilt: the linear term <tilt, inner> contained in the function; None for none.
            A closed-form solver needs it by itself.
        opaque: the function contains a term besides objective and tilt (a nudge with
            the outer objective in full), which a closed-form solver cannot see.
        functions: the other functions of the user's, by name, bound:
            `(parameters, *arguments) -> result`.
        precondition: `(parameters, r) -> about H^-1 r`; None where there is no
            preconditioner.
    """

    value: Callable[[Tree, Tree], jax.Array]
    gradient: Callable[[Tree, Tree], Tree]
    value_and_gradient: Callable[[Tree, Tree], tuple[jax.Array, Tree]]
    aux: Callable[[Tree, Tree], Any]
    tilt: Tree | None = None
    opaque: bool = False
    functions: Mapping[str, Callable[..., Any]] = MappingProxyType({})
    precondition: Callable[[Any, Tree], Tree] | None = None


def oracle(
    objective: Callable[[Tree, Tree], Any],
    *,
    has_aux: bool = False,
    mixed_mode: bool = False,
) -> Oracle:
    """Builds the oracle of an objective.

    Args:
        objective: `(inner, parameters) -> scalar`, or `(scalar, aux)` with `has_aux`.
        has_aux: whether it returns auxiliary output.
        mixed_mode: differentiate the gradient in mixed mode; see `symmetric_gradient`.
    """

    def value(inner: Tree, parameters: Tree) -> jax.Array:
        out = objective(inner, parameters)
        return out[0] if has_aux else out

    def aux(inner: Tree, parameters: Tree) -> Any:
        return objective(inner, parameters)[1] if has_aux else None

    gradient = symmetric_gradient(value) if mixed_mode else jax.grad(value)

    def value_and_gradient(inner: Tree, parameters: Tree) -> tuple[jax.Array, Tree]:
        if mixed_mode:
            return value(inner, parameters), gradient(inner, parameters)
        return jax.value_and_grad(value)(inner, parameters)

    return Oracle(value, gradient, value_and_gradient, aux)


def tilted(base: Oracle, tilt: Tree) -> Oracle:
    """The oracle of G + <tilt, w>."""

    def value(inner: Tree, parameters: Tree) -> jax.Array:
        return base.value(inner, parameters) + trees.dot(tilt, inner)

    def gradient(inner: Tree, parameters: Tree) -> Tree:
        return trees.add(base.gradient(inner, parameters), tilt)

    def value_and_gradient(inner: Tree, parameters: Tree) -> tuple[jax.Array, Tree]:
        out, grad = base.value_and_gradient(inner, parameters)
        return out + trees.dot(tilt, inner), trees.add(grad, tilt)

    total = tilt if base.tilt is None else trees.add(base.tilt, tilt)
    return base._replace(
        value=value,
        gradient=gradient,
        value_and_gradient=value_and_gradient,
        tilt=total,
    )


def penalised(
    base: Oracle, penalty: Callable[[Tree, Tree], jax.Array], factor: jax.Array | float
) -> Oracle:
    """The oracle of G + factor * penalty: a nudge with the outer function itself."""

    def value(inner: Tree, parameters: Tree) -> jax.Array:
        return base.value(inner, parameters) + factor * penalty(inner, parameters)

    return base._replace(
        value=value,
        gradient=jax.grad(value),
        value_and_gradient=jax.value_and_grad(value),
        opaque=True,
    )


def hvp(
    gradient: Callable[[Tree, Tree], Tree], inner: Tree, parameters: Tree
) -> Callable[[Tree], Tree]:
    """The Hessian-vector product u -> H u, linearised once (cost 1 g an application).

    Args:
        gradient: `(inner, parameters) -> tree like inner`; also any other map of that
            type (an optimality map), whose Jacobian in `inner` is then applied.
        inner: where to linearise.
        parameters: the other argument.
    """
    return jax.linearize(lambda w: gradient(w, parameters), inner)[1]


def mixed_vjp(
    gradient: Callable[[Tree, Tree], Tree], inner: Tree, parameters: Tree, adjoint: Tree
) -> Tree:
    """J' u = d/dp <dG/dw(inner, p), u>: the cross term of the pull-back.

    Args:
        gradient: `(inner, parameters) -> tree like inner`, or an optimality map.
        inner: w.
        parameters: where to differentiate; every leaf floating-point.
        adjoint: u, a tree like `inner`.

    Returns:
        A tree like `parameters`.  Cost: about 1.5 g.
    """
    return jax.vjp(lambda t: gradient(inner, t), parameters)[1](adjoint)[0]


def mixed_jvp(
    gradient: Callable[[Tree, Tree], Tree], inner: Tree, parameters: Tree, tangent: Tree
) -> Tree:
    """J dp: the derivative of the gradient (or map) along a direction of parameters."""
    return jax.jvp(lambda t: gradient(inner, t), (parameters,), (tangent,))[1]


def linear_solve(
    matvec: Callable[[Tree], Tree],
    rhs: Tree,
    solve: Callable[..., Any],
    transpose_solve: Callable[..., Any],
    *,
    parameters: Tree,
    symmetric: bool = False,
    has_aux: bool = False,
) -> Any:
    """A^-1 b by any solver, differentiable in both modes to any order.

    `lax.custom_linear_solve`, for trees of which a derivative touches some leaves only:
    JAX refuses (with an empty `AssertionError`) to transpose a solve unless every leaf
    of its right-hand side carries a tangent.  Right-hand side, matrix and solution are
    tied (see `trees.tied`), so that if one leaf carries a tangent, all do, in
    derivatives of derivatives too.

    Args:
        matvec: u -> A u.
        rhs: b.
        solve: `(matvec, b) -> u`, or `(u, aux)` with `has_aux`.
        transpose_solve: the same for A'.
        parameters: what the matrix and b are computed from.
        symmetric: A is symmetric.
        has_aux: whether the solvers return auxiliary output.
    """
    out = jax.lax.custom_linear_solve(
        lambda u: trees.tied(matvec(u), parameters),
        trees.tied(rhs, rhs, parameters),
        solve,
        transpose_solve,
        symmetric=symmetric,
        has_aux=has_aux,
    )
    if has_aux:
        return trees.tied(out[0], out[0]), out[1]
    return trees.tied(out, out)


def gauss_newton(
    residuals: Callable[[Tree], Tree],
    loss: Callable[[Tree], jax.Array],
    inner: Tree,
) -> Callable[[Tree], Tree]:
    """The product u -> R' L R u, R the Jacobian of `residuals`, L the loss Hessian.

    The positive-semidefinite part of the Hessian of `loss(residuals(inner))`.
    Source: Schraudolph 2002, "Fast curvature matrix-vector products".

    Args:
        residuals: `inner -> outputs`, for instance the logits of a network.
        loss: convex `outputs -> []`.
        inner: where to linearise.

    Example:
        >>> product = gauss_newton(lambda w: 3.0 * w, lambda z: z**2, 1.0)
        >>> float(product(1.0))
        18.0
    """
    outputs, push = jax.linearize(residuals, inner)
    pull = jax.linear_transpose(push, inner)
    curve = jax.linearize(jax.grad(loss), outputs)[1]
    return lambda direction: pull(curve(push(direction)))[0]


def symmetric_gradient(
    value: Callable[[Tree, Tree], jax.Array],
) -> Callable[[Tree, Tree], Tree]:
    """The gradient dG/dw with a backward pass in forward-over-reverse mode.

    The pull-back of a gradient with cotangent c is (H c, J' c), which by the symmetry
    of second derivatives is d/de grad_(w,p) G(w + e c, p): one jvp of a
    gradient, which stores no residuals of the backward pass.  For unrolled rules this
    halves memory; values agree to rounding.  The result itself cannot be
    differentiated in forward mode.  Source: Kemaev et al. 2025 (MixFlow-MG),
    arXiv:2505.00793.
    """

    @jax.custom_vjp
    def gradient(inner: Tree, parameters: Tree) -> Tree:
        return jax.grad(value)(inner, parameters)

    def forward(inner: Tree, parameters: Tree) -> tuple[Tree, tuple[Tree, Tree]]:
        return gradient(inner, parameters), (inner, parameters)

    def backward(saved: tuple[Tree, Tree], cotangent: Tree) -> tuple[Tree, Tree]:
        inner, parameters = saved
        floats, merge = trees.split_floats(parameters, trees.has_tangent)

        def both(w: Tree) -> tuple[Tree, list[Any]]:
            return jax.grad(lambda v, f: value(v, merge(f)), argnums=(0, 1))(w, floats)

        _, (for_inner, for_floats) = jax.jvp(both, (inner,), (cotangent,))
        return for_inner, _fill_float0(parameters, for_floats)

    gradient.defvjp(forward, backward)
    return gradient


def _fill_float0(parameters: Tree, floats: list[Any]) -> Tree:
    """A cotangent like `parameters`: `floats` where there is a tangent, else float0."""
    rest = iter(floats)
    return jax.tree.map(
        lambda x: next(rest) if trees.has_tangent(x) else zero_cotangent(x), parameters
    )


def zero_cotangent(x: Any) -> Any:
    """The zero of the tangent space of a leaf: float0 for integers, keys and bools."""
    if trees.has_tangent(x):
        return jnp.zeros_like(x)
    return np.zeros(jnp.shape(x), jax.dtypes.float0)
