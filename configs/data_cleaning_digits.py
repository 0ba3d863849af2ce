"""Data cleaning on scikit-learn's digits; needs no files.

    python examples/data_cleaning.py --config=configs/data_cleaning_digits.py
"""

from examples.data_cleaning_task import Config


def get_config() -> Config:
    """The configuration: 1000 noisy and 50 clean labels."""
    return Config(dataset="digits", num_train=1000, num_validation=50)
