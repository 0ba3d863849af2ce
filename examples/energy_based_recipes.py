"""The recipe of each learning rule; the configurations take theirs from here.

Chosen on validation images of MNIST (5000 of the training set), and on the digits.
"""

import dataclasses
from typing import Any

from examples.energy_based_rules import Config, Learning, Model, Optimizer

# Settled by sweeps; weights small enough that the free phase has one state.
_HOPFIELD = Model(activation="hard_sigmoid", init_scale=0.163)
_CHAIN = Model(activation="relu")
_SWEEPS = {"free_steps": 20, "nudged_steps": 10}

MODELS: dict[str, Model] = {
    "contrastive_hebbian_learning": _HOPFIELD,
    "coupled_learning": _HOPFIELD,
    "difference_target_propagation": Model(activation="tanh"),
    "equilibrium_propagation": _HOPFIELD,
    "holomorphic_equilibrium_propagation": Model(
        activation="shifted_sigmoid", init_scale=0.163
    ),
    "implicit": _HOPFIELD,
    "incremental_predictive_coding": Model(activation="tanh"),
    "predictive_coding": Model(activation="gelu"),
    "recurrent_back_propagation": _HOPFIELD,
    "truncated_back_propagation_through_time": _HOPFIELD,
}
LEARNING: dict[str, dict[str, Any]] = {
    "contrastive_hebbian_learning": _SWEEPS,
    "coupled_learning": {"beta": 0.5, **_SWEEPS},
    "difference_target_propagation": {"cost": "cross_entropy", "rate": 0.1},
    "equilibrium_propagation": {"beta": 0.5, **_SWEEPS},
    "holomorphic_equilibrium_propagation": {"beta": 0.4, **_SWEEPS},
    "implicit": _SWEEPS,
    "incremental_predictive_coding": {"step_size": 0.1, "nudged_steps": 8},
    "lpom": {"beta": 1.0},
    "predictive_coding": {"beta": 1.0, "step_size": 0.05, "nudged_steps": 8},
    "recurrent_back_propagation": _SWEEPS,
    "truncated_back_propagation_through_time": {"free_steps": 30, "nudged_steps": 10},
}
BY_DATASET: dict[str, dict[str, Any]] = {
    "digits": {"num_epochs": 60, "batch_size": 32},
    "mnist": {"num_epochs": 25, "batch_size": 128},
    "fashion_mnist": {"num_epochs": 25, "batch_size": 128},
}


def recipe(rule: str, dataset: str) -> Config:
    """The settings of a rule on a data set, dense layers of 256 and 256 units.

    Args:
        rule: its name, as in `Learning.rule`.
        dataset: digits, mnist or fashion_mnist.
    """
    own = LEARNING.get(rule, {"cost": "cross_entropy"})
    settings: Any = {"rule": rule, **own}
    small = rule in MODELS and MODELS[rule].init_scale < 1
    budget = dict(BY_DATASET[dataset])
    if small and dataset != "digits":
        budget["batch_size"] = 64
    rates = (5e-4,) if small and dataset != "digits" else (1e-3,)
    data: Any = dataset
    return Config(
        dataset=data,
        model=MODELS.get(rule, _CHAIN),
        learning=Learning(**settings),
        optimizer=Optimizer(learning_rates=rates),
        **budget,
    )


def changed(config: Config, **parts: dict[str, Any]) -> Config:
    """A configuration with some values of its parts replaced, `model={"hidden": ...}`.

    Args:
        config: to start from.
        parts: by name of the part; values of the whole by the name "top".
    """
    top = parts.pop("top", {})
    new = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in parts.items()
    }
    return dataclasses.replace(config, **top, **new)
