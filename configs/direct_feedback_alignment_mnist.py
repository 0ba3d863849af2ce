"""Direct feedback alignment on MNIST, 784-256-256-10.

    python examples/energy_based.py --config=configs/direct_feedback_alignment_mnist.py

Expect a test accuracy of 97.86 ± 0.05 % over seeds 0 to 2, about 30 s each on one core.
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("direct_feedback_alignment", "mnist")
