"""Binary weights by AdaSTE with the published nudges on Fashion-MNIST, 784-512-512-10.

    C=configs/quantized_adaste_one_sided_fashion_mnist.py
    python examples/quantized.py --config=$C

Expect a test accuracy of 89.40 ± 0.08 % over seeds 0 to 2 (89.49, 89.35, 89.36;
with --cfg.num_seeds=3), 3 minutes for the three on one core.
Less clipped straight-through, seed by seed: -0.55 ± 0.18 points.

The paper's own nudges, towards the boundary only: the noise of small batches drives
latent weights there and flips them. Hence the mean of the gradient over 5000 steps,
two fifths of the training, which a plain SGD follows (with Adam, without the mean:
91 % on MNIST after 10 epochs).
"""

from examples.quantized_methods import Config
from examples.quantized_recipes import recipe


def get_config() -> Config:
    """The configuration."""
    return recipe("adaste_one_sided", "fashion_mnist")
