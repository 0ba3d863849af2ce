"""Centred equilibrium propagation on MNIST, 784-256-256-10.

    python examples/energy_based.py --config=configs/equilibrium_propagation_mnist.py

Expect EPFIG
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("equilibrium_propagation", "mnist")
