"""Binary weights by BayesBiNN on Fashion-MNIST, 784-512-512-10.

    python examples/quantized.py --config=configs/quantized_bayesbinn_fashion_mnist.py

Expect a test accuracy of 90.13 ± 0.10 % over seeds 0 to 2 (90.17, 90.20, 90.02;
with --cfg.num_seeds=3), 5 minutes for the three on one core.
"""

from examples.quantized_methods import Config
from examples.quantized_recipes import recipe


def get_config() -> Config:
    """The configuration."""
    return recipe("bayesbinn", "fashion_mnist")
