"""The recipe of each method of `quantized.py`, for the configurations.

Settings were chosen on 5000 validation images of MNIST, with one seed and 10 epochs:
learning rates among 0.01, 0.03 and 0.1 (BayesBiNN: 1e-4, 3e-4, 1e-3; Bop: seven pairs
of adaptivity and threshold; one-sided AdaSTE: 20 of rate, average and schedule, some
for 20 epochs; ProxQuant: ten of rate and schedule). Those of Fashion-MNIST and digits
are the same, but where the number of steps matters.
"""

import dataclasses
from typing import Any

from examples.quantized_methods import Config, Model, Optimizer, Quantization

# Name -> its settings of the quantiser, and of the optimiser.
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {"learning_rate": 0.03}),
    "adaste": ({"centred": True, "floor": 0.1}, {"learning_rate": 0.03}),
    "adaste_one_sided": (
        {"method": "adaste", "floor": 0.003, "until": 0.95},
        {"name": "sgd", "learning_rate": 3000.0, "momentum": 0.0, "average": 0.9998},
    ),
    "adaste_as_released": (
        {"method": "adaste", "as_released": True},
        {"learning_rate": 0.03},
    ),
    "bayesbinn": ({}, {"learning_rate": 1e-4, "momentum": 0.0}),
    "bop": ({}, {"learning_rate": 3e-4, "threshold": 1e-7}),
    "clipped_ste": ({}, {"learning_rate": 0.03}),
    "mirror_descent_tanh": ({"start": 1.0, "end": 100.0}, {"learning_rate": 0.1}),
    "proxquant": (
        {"start": 3e-4, "end": 0.1, "wait": 0.2, "until": 0.9},
        {"learning_rate": 0.03},
    ),
    "ste": ({}, {"learning_rate": 0.03}),
}
# There are 22 steps in an epoch.
DIGITS: dict[str, dict[str, Any]] = {
    "adaste_one_sided": {"average": 0.998},
    "bayesbinn": {"learning_rate": 1e-3},
    "bop": {"learning_rate": 1e-3, "threshold": 1e-6},
}


def recipe(name: str, dataset: str) -> Config:
    """The settings of a method: all weights binary, 512 and 512 hidden units.

    Args:
        name: of the recipe; that of the method, but for the variants of AdaSTE.
        dataset: digits, mnist or fashion_mnist.
    """
    weights, steps = RECIPES[name]
    if dataset == "digits":
        steps = {**steps, **DIGITS.get(name, {})}
    method: dict[str, Any] = {"method": name, **weights}
    config = Config(quantization=Quantization(**method), optimizer=Optimizer(**steps))
    if dataset != "digits":
        named: dict[str, Any] = {"dataset": dataset}
        return dataclasses.replace(config, **named)
    return dataclasses.replace(
        config, num_epochs=60, batch_size=64, model=Model(hidden=(256, 256))
    )
