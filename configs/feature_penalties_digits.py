"""One penalty per pixel of the 8 x 8 digits, odd against even."""

from examples.feature_penalties import Config


def get_config() -> Config:
    """The configuration."""
    return Config(dataset="digits")
