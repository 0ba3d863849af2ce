"""Equilibrium propagation with noisy states on digits, 64-256-256-10, shifted sigmoid.

    N=configs/state_noise_digits.py
    python examples/energy_based.py --config=$N --cfg.learning.nudging=positive
    python examples/energy_based.py --config=$N --cfg.learning.nudging=centred
    python examples/energy_based.py --config=$N \
        --cfg.learning.rule=holomorphic_equilibrium_propagation

each with --cfg.learning.beta=0.1 and 0.4, and with --cfg.learning.noise=0.0. Gaussian
noise of 0.04 is added to what drives each unit, at every update of every phase, at test
time, too.
"""

from examples.energy_based_recipes import changed, recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return changed(
        recipe("equilibrium_propagation", "digits"),
        model={"activation": "shifted_sigmoid"},
        learning={"beta": 0.1, "noise": 0.04},
        optimizer={"name": "sgd", "learning_rates": (0.02,), "schedule": "constant"},
        top={"batch_size": 20, "num_epochs": 20},
    )
