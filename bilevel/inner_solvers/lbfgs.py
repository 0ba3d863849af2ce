"""Limited-memory BFGS."""

import optax

from bilevel import checks
from bilevel.inner_problem import InnerSolver
from bilevel.inner_solvers.gradient_descent import gradient_descent


def lbfgs(
    *,
    memory_size: int = 10,
    max_steps: int = 1000,
    rtol: float | None = None,
    max_linesearch_steps: int = 20,
) -> InnerSolver:
    """L-BFGS with a zoom line search (strong Wolfe conditions), by optax.

    Args:
        memory_size: the number of past steps that model the Hessian.
        max_steps: the cap.
        rtol: see `InnerSolver`.
        max_linesearch_steps: the cap of each line search.

    Returns:
        An `InnerSolver`.  Cost: 2 to 4 g per step, line search included; memory
        2 `memory_size` vectors.

    Raises:
        ValueError: an argument is out of range.

    Source: Liu and Nocedal 1989; Nocedal and Wright 2006, algorithms 3.5 and 7.4.
    """
    memory_size = checks.count("lbfgs: memory_size", memory_size, 1)
    max_linesearch_steps = checks.count(
        "lbfgs: max_linesearch_steps", max_linesearch_steps, 1
    )
    optimizer = optax.lbfgs(
        memory_size=memory_size,
        linesearch=optax.scale_by_zoom_linesearch(
            max_linesearch_steps=max_linesearch_steps, initial_guess_strategy="one"
        ),
    )
    solver = gradient_descent(optimizer, max_steps=max_steps, rtol=rtol)
    return solver._replace(reverse_differentiable=False)
