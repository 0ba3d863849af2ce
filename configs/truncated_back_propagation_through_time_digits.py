"""Truncated back-propagation through time on digits, 64-256-256-10.

    C=configs/truncated_back_propagation_through_time_digits.py
    python examples/energy_based.py --config=$C

Expect: to be measured.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("truncated_back_propagation_through_time", "digits")
