"""Binary weights by the clipped straight-through estimator on Fashion-MNIST.

784-512-512-10.

    python examples/quantized.py --config=configs/quantized_clipped_ste_fashion_mnist.py

Expect a test accuracy of 89.95 ± 0.11 % over seeds 0 to 2 (89.86, 90.07, 89.91;
with --cfg.num_seeds=3), 2 minutes for the three on one core.
"""

from examples.quantized_methods import Config
from examples.quantized_recipes import recipe


def get_config() -> Config:
    """The configuration."""
    return recipe("clipped_ste", "fashion_mnist")
