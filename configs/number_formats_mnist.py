"""Number formats of 4 to 16 bits on MNIST, 784-128-128-10.

python examples/number_formats.py --config=configs/number_formats_mnist.py

"""

from examples.number_formats import Config


def get_config() -> Config:
    """The configuration."""
    return Config(
        dataset="mnist",
        num_seeds=3,
        hidden=(128, 128),
        num_epochs=10,
        num_more_epochs=3,
    )
