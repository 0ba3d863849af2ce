"""An outer algorithm of one's own: one step of each variable, on three batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.derivatives import hvp, mixed_vjp
from bilevel.problem import Batches, Problem, Samples, Solver, as_samples, stream


class State(NamedTuple):
    """A checkpoint is this pytree."""

    inner: Any
    outer: Any
    adjoint: Any  # v, about H^-1 dF/dw
    step: jax.Array
    key: jax.Array


class Info(NamedTuple):
    """Of the point before the step; scalars."""

    value: jax.Array
    gradient_norm: jax.Array


def three_batches(
    problem: Problem, *, inner: float, adjoint: float, outer: float
) -> Solver[State, Info]:
    """w, v and x move at once, along -dG/dw, dF/dw - H v and J'v - dF/dx.

    dG/dw and the products with H and J have batches of their own, F a third.

    Source: Dagreou et al. 2022 (SOBA), arXiv:2201.13409, equations 5 to 7.
    """

    def init(w: Any, x: Any, key: jax.Array) -> State:
        w, x = trees.as_arrays(w), trees.as_arrays(x)
        return State(w, x, trees.zeros_like(w), jnp.zeros((), jnp.int32), key)

    def update(state: State, samples: Samples | Batches) -> tuple[State, Info]:
        samples = as_samples(samples)
        w, x, v, step, key = state
        first = samples.inner(stream(key, "inner"), 2 * step)
        second = samples.inner(stream(key, "inner"), 2 * step + 1)
        third = samples.outer(stream(key, "outer"), step)
        slope = jax.grad(problem.inner_objective)(w, x, first)
        gradient = lambda w, x: jax.grad(problem.inner_objective)(w, x, second)
        both = jax.value_and_grad(problem.outer_objective, argnums=(0, 1))
        value, (over_w, over_x) = both(w, x, third)
        along = trees.sub(over_w, hvp(gradient, w, x)(v))
        hyper = trees.sub(over_x, mixed_vjp(gradient, w, x, v))
        w, x = trees.axpy(-inner, slope, w), trees.axpy(-outer, hyper, x)
        new = State(w, x, trees.axpy(adjoint, along, v), step + 1, key)
        return new, Info(value, trees.norm(hyper))

    return Solver(init, update)
