"""The configuration of a short run."""

from study import Config


def get_config() -> Config:
    """Three steps."""
    return Config(num_steps=3)
