"""A linear solver of one's own: MINRES, for symmetric, also indefinite systems."""

from typing import Any

import jax.numpy as jnp

from bilevel import iterate_until, trees
from bilevel.linear_solvers import LinearInfo, LinearSolver
from bilevel.linear_solvers.base import Matvec, unit


def minres(*, rtol: float = 1e-8, max_steps: int = 1000) -> LinearSolver:
    """Paige and Saunders 1975, as in algorithm 2.4 of Elman, Silvester, Wathen 2014."""

    def solve(
        matvec: Matvec, rhs: Any, initial: Any = None, precondition: Any = None
    ) -> tuple[Any, LinearInfo]:
        assert precondition is None, "minres takes no preconditioner."
        b, size = unit(rhs)
        u = trees.zeros_like(b) if initial is None else trees.over(initial, size)
        r = b if initial is None else trees.sub(b, matvec(u))
        eta, o = trees.norm(r), trees.zeros_like(b)
        zero, one = jnp.zeros_like(eta), jnp.ones_like(eta)
        eps = max(rtol, 10 * trees.epsilon(b))

        def step(s: Any) -> Any:
            u, (v, v_old), (d, d_old), (gamma, c, z, c_old, z_old, eta), seen = s
            image = matvec(v)
            delta = trees.dot(v, image)
            rest = trees.axpy(-delta, v, trees.axpy(-gamma, v_old, image))
            size = trees.norm(rest)
            a, back = c * delta - c_old * z * gamma, z * delta + c_old * c * gamma
            rho = jnp.hypot(a, size)
            safe = jnp.where(rho > 0, rho, 1)  # 0: A is singular on the Krylov space
            new = trees.axpy(-back, d, trees.axpy(-z_old * gamma, d_old, v))
            new = trees.scale(1 / safe, new)
            u = trees.axpy(a / safe * eta, new, u)
            eta = jnp.where(rho > 0, -size / safe * eta, eta)
            pivot, positive, smallest = seen  # the signs of pivots are those of A
            pivot = delta - gamma**2 / jnp.where(pivot == 0, eps, pivot)
            seen = (pivot, positive & (pivot > 0), jnp.minimum(smallest, rho))
            numbers = (size, a / safe, size / safe, c, z, eta)
            return u, (trees.over(rest, size), v), (new, d), numbers, seen

        def is_done(s: Any) -> Any:
            error = jnp.abs(s[3][-1]) / s[4][2]  # of u, from R of Q R = T
            met = ~(error > eps * trees.norm(s[0])) & ~jnp.isinf(s[4][2])
            return met | (s[3][-1] == 0)

        seen = (one, jnp.isfinite(eta), jnp.inf * one)
        numbers = (zero, one, zero, one, zero, eta)
        start = (u, (trees.over(r, eta), o), (o, o), numbers, seen)
        (u, *_, seen), count = iterate_until(step, start, is_done, max_steps=max_steps)
        residual, length = trees.norm(trees.sub(b, matvec(u))), trees.norm(u)
        error = residual / jnp.where(size > 0, seen[2] * length, 1)
        converged, unknown = residual <= 1e3 * eps, jnp.nan * one
        info = LinearInfo(residual, error, count, converged, seen[1], seen[2], unknown)
        return trees.scale(size, u), info

    return LinearSolver(solve, needs="symmetric")
