"""Recurrent back-propagation on Fashion-MNIST, 784-256-256-10.

    C=configs/recurrent_back_propagation_fashion_mnist.py
    python examples/energy_based.py --config=$C

Expect a test accuracy of 88.84 % with seed 0, the only one measured, in at most 7
minutes on one core.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("recurrent_back_propagation", "fashion_mnist")
