"""Binary weights by mirror descent (MD-tanh) on digits, 64-256-256-10.

    C=configs/quantized_mirror_descent_tanh_digits.py
    python examples/quantized.py --config=$C

Expect a test accuracy of 97.69 ± 0.16 % over seeds 0 to 2 (97.50, 97.78, 97.78;
with --cfg.num_seeds=3), half a minute for the three on one core.
"""

from examples.quantized_methods import Config
from examples.quantized_recipes import recipe


def get_config() -> Config:
    """The configuration."""
    return recipe("mirror_descent_tanh", "digits")
