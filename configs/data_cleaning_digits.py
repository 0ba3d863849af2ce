"""Data cleaning on scikit-learn's digits; needs no files.

Run `python examples/data_cleaning.py --config=configs/data_cleaning_digits.py`: half a
minute on 2 cores, compilation included.  Test accuracy over 5 seeds, mean ± standard
deviation: 91.5 ± 1.9 % (filter 91.5 ± 1.3, validation set only 86.1 ± 1.9, noisy
labels 83.4 ± 3.9, oracle 94.9 ± 1.1); F1 of the labels called wrong 0.949 ± 0.005
(filter 0.943 ± 0.009).
"""

from examples.data_cleaning_task import Config


def get_config() -> Config:
    """The configuration: 1000 noisy and 50 clean labels."""
    return Config(dataset="digits", num_train=1000, num_validation=50)
