"""Centred equilibrium propagation on Fashion-MNIST, 784-256-256-10.

    C=configs/equilibrium_propagation_fashion_mnist.py
    python examples/energy_based.py --config=$C

Expect a test accuracy of 89.15 % with seed 0, the only one measured, in at most 5
minutes on one core.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("equilibrium_propagation", "fashion_mnist")
