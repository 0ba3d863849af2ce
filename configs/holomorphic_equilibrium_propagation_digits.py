"""Holomorphic equilibrium propagation on digits, 64-256-256-10.

    C=configs/holomorphic_equilibrium_propagation_digits.py
    python examples/energy_based.py --config=$C

Expect: to be measured.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("holomorphic_equilibrium_propagation", "digits")
