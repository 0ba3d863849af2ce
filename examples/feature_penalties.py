"""One L2 penalty per feature of logistic regression, learned on validation loss.

    python examples/feature_penalties.py --config=configs/feature_penalties_digits.py

The inner problem fits the weights under penalties exp(x_j) w_j^2 / 2, the outer one
minimises the validation loss in x.  The rival is a grid of penalties shared by all
features, with the same inner solver and tolerance; both start every fit where the last
one ended, and both answer with the point of least validation loss that they visited.
What to expect: see the configurations.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from bilevel import datasets, hypergradients, inner_solvers, linear_solvers, solvers
from bilevel.experiments import Run
from bilevel.experiments.config import field


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings; chosen on validation loss."""

    dataset: Literal["digits", "ijcnn1"] = field("digits", help="digits: odd or even")
    seed: int = field(0, help="of the split into training and validation data")
    hypergradient: Literal["implicit", "nudged"] = field("implicit", help="the rule")
    beta: float = field(1e-3, help="nudge of the nudged rule", minimum=0.0)
    outer_steps: int = field(5, help="points to visit, the first included", minimum=1)
    learning_rate: float = field(2.0, help="of Adam, on log penalties", minimum=0.0)
    initial: float = field(-8.0, help="log penalty of every feature at the start")
    grid_size: int = field(20, help="shared penalties, from e^4 to e^-12", minimum=1)


class Visits(NamedTuple):
    """The points a method visited, and the best of them."""

    losses: list[float]
    seconds: list[float]  # since the start, compilation left out
    compile_seconds: float
    weights: jax.Array  # [d]
    penalties: jax.Array  # [d], logarithms


def loss(weights: jax.Array, data: datasets.Examples) -> jax.Array:
    """The mean cross-entropy."""
    logits = data.inputs @ weights
    return jnp.mean(jax.nn.softplus(logits) - data.labels * logits)


PROBLEM = bilevel.Problem(
    inner_objective=lambda w, x, data: loss(w, data) + jnp.sum(jnp.exp(x) * w**2) / 2,
    outer_objective=lambda w, x, data: loss(w, data),
)
INNER_SOLVER = inner_solvers.newton()
REPEATS = 5  # of the same path; the fastest is reported


def visit(step: Callable[..., Any], carry: Any, points: Any, batches: Any) -> Visits:
    """Calls `step(carry, point, batches) -> (carry, (loss, weights, penalties))`."""
    start = time.perf_counter()
    compiled = jax.jit(step).lower(carry, points[0], batches).compile()
    compile_seconds = time.perf_counter() - start
    first, found, seconds = carry, [], [float("inf")]
    for _ in range(REPEATS):
        carry, found, clock = first, [], [time.perf_counter()]
        for point in points:
            carry, result = jax.block_until_ready(compiled(carry, point, batches))
            found.append(result)
            clock.append(time.perf_counter())
        seconds = min(seconds, [t - clock[0] for t in clock[1:]], key=lambda s: s[-1])
    losses = [float(one[0]) for one in found]
    return Visits(losses, seconds, compile_seconds, *found[int(np.argmin(losses))][1:])


def learn(config: Config, dim: int, batches: bilevel.Batches) -> Visits:
    """One penalty per feature, by gradient steps."""
    rules = {  # the Hessian is small enough to be formed
        "implicit": hypergradients.implicit(linear_solvers.dense()),
        "nudged": hypergradients.nudged(config.beta),
    }
    optimizer = optax.adam(config.learning_rate, b1=0.5, b2=0.9)
    rule = rules[config.hypergradient]
    solver = solvers.two_loop(PROBLEM, INNER_SOLVER, rule, outer_optimizer=optimizer)

    def step(state: Any, _: Any, batches: bilevel.Batches) -> Any:
        new, info = solver.update(state, batches)
        return new, (info.value, new.inner, state.outer)

    start = jnp.full(dim, config.initial, jnp.float32)
    state = solver.init(jnp.zeros(dim), start, jax.random.key(config.seed))
    return visit(step, state, np.arange(config.outer_steps), batches)


def search(config: Config, dim: int, batches: bilevel.Batches) -> Visits:
    """One penalty for all features, from a grid."""
    solve = bilevel.argmin(PROBLEM.inner_objective, INNER_SOLVER)

    def step(weights: jax.Array, point: jax.Array, batches: bilevel.Batches) -> Any:
        penalties = jnp.full(dim, point)
        weights, _ = solve(weights, penalties, batches.inner)
        return weights, (loss(weights, batches.outer), weights, penalties)

    points = np.linspace(4, -12, config.grid_size, dtype=np.float32)
    return visit(step, jnp.zeros(dim), points, batches)


def load(config: Config, run: Run) -> tuple[bilevel.Batches, datasets.Examples]:
    """Training and validation data (four to one), and test data."""
    if config.dataset == "ijcnn1":
        splits = datasets.load_ijcnn1(run.data_dir)
    else:
        digits = datasets.load_digits(config.seed)
        splits = datasets.Splits(*(e._replace(labels=e.labels % 2) for e in digits))
    num = len(splits.train.labels)
    sizes = (num - num // 5, num // 5)
    parts = datasets.split(splits.train, sizes, config.seed, stratified=True)
    train, validation, test = jax.device_put((*parts, splits.test))
    return bilevel.Batches(train, validation), test


def draw(methods: dict[str, Visits], path: str) -> None:
    """The penalties; the curves of the losses are drawn by `launch`."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(layout="constrained")).subplots()
    for name, found in methods.items():
        axes.plot(np.arange(len(found.penalties)) + 1, found.penalties, "o", label=name)
    axes.set(xlabel="feature", ylabel="log penalty at the least validation loss")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(config: Config, run: Run) -> None:
    """Runs both methods, prints the table, draws the figure."""
    batches, test = load(config, run)
    run.record_data(**batches._asdict(), test=test, split_seed=config.seed)
    dim = test.inputs.shape[1]
    methods = {
        f"one per feature, {config.hypergradient}": learn(config, dim, batches),
        f"shared, grid of {config.grid_size}": search(config, dim, batches),
    }
    columns = ("validation loss", "test accuracy", "run seconds", "compile seconds")
    print(f"{'penalties':26}" + "".join(f"{name:>17}" for name in columns))
    summary = {}
    for name, found in methods.items():
        for step, value in enumerate(found.losses):
            run.log(step, method=name, loss=value, seconds=found.seconds[step])
        right = (test.inputs @ found.weights > 0) == (test.labels > 0)
        times = (found.seconds[-1], found.compile_seconds)
        row = (min(found.losses), float(jnp.mean(right)), *times)
        print(f"{name:26}" + "".join(f"{value:17.5f}" for value in row))
        summary[name] = dict(zip(columns, row, strict=True))
    draw(methods, str(run.path("figures/penalties.png")))
    run.finish(summary)


if __name__ == "__main__":
    bilevel.launch(main)
