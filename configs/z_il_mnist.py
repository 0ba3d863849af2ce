"""Z-IL on MNIST, 784-256-256-10.

    python examples/energy_based.py --config=configs/z_il_mnist.py

Expect a test accuracy of 98.39 ± 0.10 % over seeds 0 to 2 (98.38, 98.30, 98.50; with
--cfg.num_seeds=3), at most 99 s for the three on one core.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("z_il", "mnist")
