"""Predictive coding with 8 steps of inference on Fashion-MNIST, 784-256-256-10.

    python examples/energy_based.py --config=configs/predictive_coding_fashion_mnist.py

Expect a test accuracy of 89.29 ± 0.14 % over seeds 0 to 2 (89.13, 89.38, 89.37; with
--cfg.num_seeds=3), at most 2 minutes for the three on one core. Chosen on 5000
validation images (seeds 0 and 1, means): steps of inference of 0.02 90.37 %; of 0.05,
as on MNIST, with half the learning rate 89.56 %, with a weight decay of 0.1 30.20 %.
With 0.05 alone inference becomes unstable after a few epochs (58 % of the test images).
"""

from examples.energy_based_recipes import recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return recipe("predictive_coding", "fashion_mnist")
