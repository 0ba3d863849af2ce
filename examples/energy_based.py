"""Trains a network by any learning rule: equilibrium propagation, dual propagation, ...

    python examples/energy_based.py --config=configs/equilibrium_propagation_digits.py
    python examples/energy_based.py --cfg.learning.rule=dual_propagation

One program for every rule and network: the rule is one setting. An epoch is one
compiled loop. The test images are looked at once, after the last epoch; settings were
chosen with `--cfg.num_validation=5000`, which holds images out of training. A run that
was interrupted goes on by the same command. `--cfg.num_seeds=3` trains the networks of
three seeds side by side, on the same split of the data: faster where the machine is not
full with one. `--cfg.angles=true` compares with the true gradient after every epoch:
angles, cosines and Lipschitz constants of the layers, drawn in the run's folder with
the residuals of the phases and the size of the nudge's response. What to expect: see
the configurations.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from bilevel import energy
from bilevel.experiments import Run, progress
from examples import images
from examples.energy_based_diagnosis import diagnosis_of
from examples.energy_based_optimizer import optimizer_of
from examples.energy_based_rules import Config, rule_of
from examples.images import Images, accuracies, load, told_of


class State(NamedTuple):
    """All that training changes."""

    params: Any
    optimizer: Any
    step: jax.Array
    key: jax.Array


def accuracy(apply: Any, params: Any, part: Images) -> float:
    """`accuracies` of a single network."""
    return float(accuracies(apply, params, part)[0])


def main(config: Config, run: Run) -> None:
    """Trains, and prints the test accuracy."""
    began = time.monotonic()
    data = load(config, run, squares=bool(config.model.channels))
    run.record_data(**data._asdict(), split_seed=config.seed)
    rule = rule_of(config, data.train.inputs.shape[-1])
    steps_per_epoch = len(data.train.labels) // config.batch_size
    optimizer = optimizer_of(config, steps_per_epoch)

    def fresh(seed: int) -> State:
        first, key = jax.random.split(jax.random.key(seed))
        params = rule.init(first, data.train.inputs[:1])
        return State(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)

    one_epoch = epoch_of(config, rule, optimizer)
    diagnose = diagnosis_of(config, rule, data.train.inputs.shape[-1])
    if config.num_seeds == 1:
        start, each = fresh(config.seed), lambda function, axes: function
    else:
        states = [fresh(config.seed + number) for number in range(config.num_seeds)]
        start, each = jax.tree.map(lambda *x: jnp.stack(x), *states), jax.vmap
    epoch = jax.jit(each(one_epoch, (0, None)), donate_argnums=0)
    apply = jax.jit(each(rule.apply, (0, None)))
    diagnose = jax.jit(each(diagnose, (0, None, 0)))
    state, done = run.restore(start) or (start, 0)
    few = jax.tree.map(lambda x: x[:500], data.train)

    with progress("training") as show:
        for number in range(done, config.num_epochs):
            state, metrics = epoch(state, data.train)
            values = {name: float(np.mean(value)) for name, value in metrics.items()}
            if not np.isfinite(values["cost"]):
                costs = np.atleast_1d(metrics["cost"]).tolist()
                raise FloatingPointError(
                    f"the cost of each seed is {costs} in epoch {number + 1}; take a "
                    "smaller learning rate or nudge, or more sweeps."
                )
            if config.num_validation:
                found = accuracies(apply, state.params, data.validation)
                values["validation_accuracy"] = float(np.mean(found))
            if config.angles:
                told = diagnose(state.params, few, state.key)
                values |= {name: float(np.mean(value)) for name, value in told.items()}
            show(number + 1, config.num_epochs, values)
            run.log(number + 1, **values)
            run.save(number + 1, state, force=number + 1 == config.num_epochs)
    seconds = time.monotonic() - began
    summary = told_of("test_accuracy", accuracies(apply, state.params, data.test))
    if config.num_validation:
        found = accuracies(apply, state.params, data.validation)
        summary |= told_of("validation_accuracy", found)
    run.finish({**summary, "seconds": seconds})


def epoch_of(
    config: Config, rule: energy.LearningRule, optimizer: optax.GradientTransformation
) -> Any:
    """`(state, train) -> (state, metrics)`, metrics being means over the epoch."""

    def step(state: State, batch: Images, index: jax.Array) -> tuple[State, Any]:
        del index
        noise = jax.random.fold_in(state.key, state.step)
        (value, aux), grads = rule(state.params, batch.inputs, batch.labels, noise)
        updates, memory = optimizer.update(grads, state.optimizer, state.params)
        params = rule.project(optax.apply_updates(state.params, updates))
        right = jnp.mean(jnp.argmax(aux.outputs, -1) == batch.labels)
        metrics = {"cost": value, "train_accuracy": right}
        for name in ("free_residual", "nudged_residual", "displacement"):
            if getattr(aux, name) is not None:
                metrics[name] = getattr(aux, name)
        if aux.converged is not None:
            metrics["converged"] = aux.converged.astype(jnp.float32)
        return State(params, memory, state.step + 1, state.key), metrics

    def epoch(state: State, train: Images) -> tuple[State, dict[str, jax.Array]]:
        num_steps = len(train.labels) // config.batch_size
        key = jax.random.fold_in(state.key, state.step // num_steps)
        return images.epoch(step, state, train, key, config.batch_size)

    return epoch


if __name__ == "__main__":
    bilevel.launch(main, Config())
