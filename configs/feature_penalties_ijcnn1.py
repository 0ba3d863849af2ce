"""One penalty for each of the 22 features of ijcnn1."""

from examples.feature_penalties import Config


def get_config() -> Config:
    """The configuration."""
    return Config(dataset="ijcnn1")
