"""Gradient descent by any optax transformation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel import checks, closures, trees
from bilevel.derivatives import Oracle
from bilevel.inner_problem import (
    InnerSolver,
    Parameters,
    StepInfo,
    UserFunction,
    stationarity,
)
from bilevel.inner_solvers.driver import check_limits
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
            Either may be, or close over, a value that is being differentiated.
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
        step_size = checks.positive_if_known(
            "gradient_descent: the step size", optimizer
        )
        optimizer = optax.sgd(step_size)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "gradient_descent: expected an optax transformation or a step size, got "
            f"{type(optimizer).__name__}."
        )
    transform = optax.with_extra_args_support(optimizer)

    def update(
        gradient: Tree, state: Any, inner: Tree, value: jax.Array, level: jax.Array
    ) -> tuple[Tree, Any]:
        """An update that may not ask for G elsewhere; `level` tells whether it does."""
        return transform.update(
            gradient,
            state,
            inner,
            value=value,
            grad=gradient,
            value_fn=lambda w: level + trees.dot(gradient, w),
        )

    def example(inner: Tree, outer: Tree, batch: Any) -> tuple[Any, ...]:
        del outer, batch
        scalar = jax.ShapeDtypeStruct((), trees.real_dtype(inner))
        return inner, jax.eval_shape(transform.init, inner), inner, scalar, scalar

    def init(oracle: Oracle, inner: Tree, parameters: Parameters) -> Any:
        return oracle.functions["optimizer_init"](parameters, inner)

    def step(
        oracle: Oracle, inner: Tree, state: Any, parameters: Parameters
    ) -> tuple[Tree, Any, StepInfo]:
        value, gradient = oracle.value_and_gradient(inner, parameters)
        if parameters.constants["optimizer_update"]:  # it closes over traced values
            bound = partial(oracle.functions["optimizer_update"], parameters)
            level = jnp.zeros((), trees.real_dtype(inner))
            arguments = (gradient, state, inner, value.astype(level.dtype), level)
            _require_no_search(bound, arguments)
            updates, state = bound(*arguments)
        else:
            updates, state = transform.update(
                gradient,
                state,
                inner,
                value=value,
                grad=gradient,
                value_fn=lambda w: oracle.value(w, parameters),
            )
        info = StepInfo(trees.norm(gradient), None, jnp.zeros((), bool))
        return optax.apply_updates(inner, updates), state, info

    return InnerSolver(
        init=init,
        step=step,
        optimality=stationarity,
        structure="positive_definite",
        max_steps=max_steps,
        rtol=rtol,
        functions=(
            UserFunction("optimizer_init", transform.init, lambda w, *_: (w,)),
            UserFunction("optimizer_update", update, example),
        ),
    )


def _require_no_search(update: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if closures.depends_on(update, arguments, len(arguments) - 1):
        raise ValueError(
            "gradient_descent: this optimiser asks for values of the inner objective "
            "(a line search) and closes over values that are traced by JAX. Expected "
            "one or the other: make what it closes over part of the outer variable or "
            "plain numbers, or take an optimiser without a line search."
        )
