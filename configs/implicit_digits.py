"""The core's implicit rule on digits, 64-256-256-10.

    python examples/energy_based.py --config=configs/implicit_digits.py

Expect a test accuracy of 93.70 ± 1.53 % over seeds 0 to 2 (95.28, 93.61, 92.22; with
--cfg.num_seeds=3, all on the split of seed 0), at most 11 minutes for the three on one
core.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("implicit", "digits")
