"""What a gradient through an argmin costs in memory, as compiled."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import pytest

import bilevel

NUM, DIM = 1000, 4000
MIB = 2**20
# Shapes suffice: nothing is run.  The Hessian would be 122 MiB, the data are 31 MiB.
WEIGHTS = jax.ShapeDtypeStruct((DIM,), jnp.float64)
DATA = (
    jax.ShapeDtypeStruct((NUM, DIM), jnp.float64),
    jax.ShapeDtypeStruct((NUM,), jnp.float64),
)


def logistic(w, data):
    inputs, signs = data
    return jnp.mean(jax.nn.softplus(-signs * (inputs @ w)))


def penalised(w, x, data):
    return logistic(w, data) + jnp.sum(jnp.exp(x) * w**2) / 2


def temporary_memory(function: Callable[..., object]) -> int:
    # Data as an argument: a constant would count as part of the program.
    compiled = jax.jit(function).lower(WEIGHTS, WEIGHTS, DATA).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize("on_untrustworthy", ["warn", "nan", "ignore"])
@pytest.mark.thorough
def test_the_backward_pass_of_the_default_rule_stores_a_few_vectors(
    on_untrustworthy: Literal["warn", "nan", "ignore"],
):
    solve = bilevel.argmin(penalised, on_untrustworthy=on_untrustworthy)

    def value(w0, x, data):
        return logistic(solve(w0, x, data)[0], data)

    forward = temporary_memory(value)
    both = temporary_memory(jax.value_and_grad(value, argnums=1))
    assert forward < MIB
    assert both - forward < MIB
