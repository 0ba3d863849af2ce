"""Centred equilibrium propagation on MNIST, 784-256-256-10.

    python examples/energy_based.py --config=configs/equilibrium_propagation_mnist.py

Expect a test accuracy of 97.88 ± 0.08 % over seeds 0 to 2 (97.96, 97.81, 97.86), 4
minutes each on one core.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("equilibrium_propagation", "mnist")
