"""The recipe of each method of `quantized.py`, for the configurations.

Learning rates were chosen on validation images of MNIST (5000 of the training set),
among three, 10 epochs each; AdaSTE's, and its average, on 10 000 images. Those of the
digits are the same, but for BayesBiNN and Bop.
"""

import dataclasses
from typing import Any

from examples.quantized_methods import Config, Model, Optimizer, Quantization

# Method -> its settings of the quantiser, and of the optimiser.
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {"learning_rate": 0.01}),
    "adaste": (
        {"floor": 0.003},
        {"name": "sgd", "learning_rate": 300.0, "momentum": 0.0, "average": 0.995},
    ),
    "bayesbinn": ({}, {"learning_rate": 1e-3, "momentum": 0.0}),
    "bop": ({}, {"learning_rate": 1e-3, "threshold": 1e-6}),
    "clipped_ste": ({}, {"learning_rate": 0.03}),
    "mirror_descent_tanh": ({"start": 1.0, "end": 100.0}, {"learning_rate": 0.03}),
}


def recipe(method: str, dataset: str) -> Config:
    """The settings of a method: all weights binary, 512 and 512 hidden units.

    Args:
        method: its name, as in `Quantization.method`.
        dataset: digits, mnist or fashion_mnist.
    """
    weights, steps = RECIPES[method]
    names: dict[str, Any] = {"method": method, **weights}
    config = Config(quantization=Quantization(**names), optimizer=Optimizer(**steps))
    if dataset != "digits":
        names = {"dataset": dataset}
        return dataclasses.replace(config, **names)
    if method == "adaste":
        # There are 22 steps in an epoch.
        steps = {**steps, "average": 0.98}
    return dataclasses.replace(
        config,
        num_epochs=60,
        batch_size=64,
        model=Model(hidden=(256, 256)),
        optimizer=Optimizer(**steps),
    )
