"""Gradient descent by any optax transformation."""

from typing import Any

import jax.numpy as jnp
import optax

from bilevel import checks, trees
from bilevel.derivatives import Oracle
from bilevel.inner_solvers.base import (
    InnerSolver,
    StepInfo,
    check_limits,
)
from bilevel.trees import Tree


def gradient_descent(
    optimizer: optax.GradientTransformation | float,
    *,
    max_steps: int = 1000,
    rtol: float | None = None,
) -> InnerSolver:
    """w <- w + optimizer(dG/dw), until the gradient is small.

    Args:
        optimizer: any optax transformation (value, gradient and value function are
            passed to those that ask for them), or a step size for plain descent.
        max_steps: the cap.
        rtol: see `InnerSolver`; 0 takes all `max_steps` steps.

    Returns:
        An `InnerSolver`.  Cost: 1 g per step; the residual is a by-product.

    Raises:
        ValueError: a step size, cap or tolerance out of range.

    Example:
        >>> solver = gradient_descent(optax.adam(1e-2), max_steps=500)
    """
    max_steps = check_limits("gradient_descent", max_steps, rtol)
    if checks.is_number(optimizer):
        step_size = checks.positive("gradient_descent: the step size", optimizer)
        optimizer = optax.sgd(step_size)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "gradient_descent: expected an optax transformation or a step size, got "
            f"{type(optimizer).__name__}."
        )
    transform = optax.with_extra_args_support(optimizer)

    def init(oracle: Oracle, inner: Tree, theta: Tree) -> Any:
        del oracle, theta
        return transform.init(inner)

    def step(
        oracle: Oracle, inner: Tree, state: Any, theta: Tree
    ) -> tuple[Tree, Any, StepInfo]:
        value, gradient = oracle.value_and_gradient(inner, theta)
        updates, state = transform.update(
            gradient,
            state,
            inner,
            value=value,
            grad=gradient,
            value_fn=lambda w: oracle.value(w, theta),
        )
        info = StepInfo(trees.norm(gradient), None, jnp.zeros((), bool))
        return optax.apply_updates(inner, updates), state, info

    return InnerSolver(init, step, _gradient, True, max_steps, rtol)


def _gradient(oracle: Oracle, inner: Tree, theta: Tree) -> Tree:
    return oracle.gradient(inner, theta)
