"""Data cleaning on Fashion-MNIST; needs the four original files.

Run `python examples/data_cleaning.py --config=configs/data_cleaning_fashion_mnist.py
--data_dir=...`: 1 to 2 minutes on 2 cores.
"""

from examples.data_cleaning_task import Config


def get_config() -> Config:
    """The configuration: 5000 noisy and 5000 clean labels."""
    return Config(
        dataset="fashion_mnist",
        num_train=5000,
        num_validation=5000,
        penalties=(0.01, 0.003, 0.001, 0.0003, 0.0001),
        num_folds=3,
    )
