"""Scales of weights of 2 to 4 bits on MNIST, 784-128-128-10.

python examples/learned_scales.py --config=configs/learned_scales_mnist.py

"""

from examples.learned_scales import Config


def get_config() -> Config:
    """The configuration."""
    return Config(
        dataset="mnist",
        num_seeds=3,
        num_train=50_000,
        num_validation=10_000,
        hidden=(128, 128),
        num_epochs=5,
        batch_size=100,
        outer_every=20,
        outer_batch=500,
    )
