"""Dual propagation through convolutions and max-pooling on Fashion-MNIST.

    C=configs/convolutional_dual_propagation_fashion_mnist.py
    python examples/energy_based.py --config=$C
    python examples/energy_based.py --config=$C --cfg.learning.rule=back_propagation

Two 3 x 3 convolutions of 8 and 16 channels, each pooled 2 x 2, and a dense layer of
128 units.
"""

from examples.energy_based_recipes import changed, recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return changed(
        recipe("dual_propagation", "fashion_mnist"),
        model={"channels": (8, 16), "hidden": (128,)},
        top={"num_epochs": 8},
    )
