"""Binary weights by Bop on Fashion-MNIST, 784-512-512-10.

    python examples/quantized.py --config=configs/quantized_bop_fashion_mnist.py

Expect a test accuracy of 88.68 ± 0.50 % over seeds 0 to 2 (89.20, 88.64, 88.21;
with --cfg.num_seeds=3), 2 minutes for the three on one core.
"""

from examples.quantized_methods import Config
from examples.quantized_recipes import recipe


def get_config() -> Config:
    """The configuration."""
    return recipe("bop", "fashion_mnist")
