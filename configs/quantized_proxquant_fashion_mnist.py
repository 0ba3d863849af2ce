"""Binary weights by ProxQuant on Fashion-MNIST, 784-512-512-10.

    python examples/quantized.py --config=configs/quantized_proxquant_fashion_mnist.py

Expect a test accuracy of 88.28 ± 0.06 % over seeds 0 to 2 (88.22, 88.33, 88.29;
with --cfg.num_seeds=3), 2 minutes for the three on one core.
"""

from examples.quantized_methods import Config
from examples.quantized_recipes import recipe


def get_config() -> Config:
    """The configuration."""
    return recipe("proxquant", "fashion_mnist")
