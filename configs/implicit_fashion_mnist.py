"""The core's implicit rule on Fashion-MNIST, 784-256-256-10.

    python examples/energy_based.py --config=configs/implicit_fashion_mnist.py

Expect a test accuracy of 88.93 % with seed 0, the only one measured, in at most 41
minutes on one core.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("implicit", "fashion_mnist")
