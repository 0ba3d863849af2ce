"""Another project's experiment: `python study.py --config=small.py --workdir=...`."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

import bilevel
from bilevel import hypergradients, solvers
from bilevel.experiments import Run
from bilevel.experiments.config import field
from bilevel.hypergradients import Hypergradient
from bilevel.solvers import TwoLoopInfo, TwoLoopState


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings."""

    rule: Literal["implicit", "nudged"] = field("implicit", help="the rule")
    num_steps: int = field(5, help="outer steps", minimum=1)
    learning_rate: float = field(0.1, help="of the outer variable", minimum=0.0)


def rule(config: Config) -> Hypergradient:
    """The rule of a configuration."""
    if config.rule == "nudged":
        return hypergradients.nudged(1e-2)
    return hypergradients.implicit()


def main(config: Config, run: Run) -> None:
    """Minimises w*(x)^2 with w*(x) = x."""
    problem = bilevel.Problem(
        inner_objective=lambda w, x, batch: jnp.sum((w - x) ** 2),
        outer_objective=lambda w, x, batch: jnp.sum(w**2),
    )
    solver = solvers.two_loop(
        problem,
        hypergradient=rule(config),
        outer_optimizer=optax.sgd(config.learning_rate),
    )
    state: TwoLoopState = solver.init(jnp.zeros(2), jnp.ones(2), jax.random.key(0))
    restored = run.restore(state)
    state, done = restored or (state, 0)
    history: TwoLoopInfo
    state, history = bilevel.run(
        solver, state, bilevel.Batches(), num_steps=config.num_steps - done
    )
    for step, value in enumerate(history.value, start=done + 1):
        run.log(step, value=value)
    run.save(int(state.step), state, force=True)
    run.finish({"outer": state.outer.tolist()})


if __name__ == "__main__":
    bilevel.launch(main)
