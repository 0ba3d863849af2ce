"""Dual propagation in one sweep on digits, 64-256-256-10.

    python examples/energy_based.py --config=configs/dual_propagation_digits.py

Expect: to be measured.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("dual_propagation", "digits")
