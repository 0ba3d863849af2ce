"""Lifted proximal operator machines on Fashion-MNIST, 784-256-256-10.

    python examples/energy_based.py --config=configs/lpom_fashion_mnist.py

Expect: to be measured.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("lpom", "fashion_mnist")
