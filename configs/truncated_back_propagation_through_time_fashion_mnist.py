"""Truncated back-propagation through time on Fashion-MNIST, 784-256-256-10.

    C=configs/truncated_back_propagation_through_time_fashion_mnist.py
    python examples/energy_based.py --config=$C

Expect a test accuracy of 89.42 % with seed 0, the only one measured, in at most 7
minutes on one core.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("truncated_back_propagation_through_time", "fashion_mnist")
