"""Equilibrium propagation with noisy states on MNIST, 784-256-256-10, shifted sigmoid.

    N=configs/state_noise_mnist.py
    python examples/energy_based.py --config=$N --cfg.learning.nudging=positive
    python examples/energy_based.py --config=$N --cfg.learning.nudging=centred
    python examples/energy_based.py --config=$N \
        --cfg.learning.rule=holomorphic_equilibrium_propagation

each with --cfg.learning.beta=0.1 and 0.4, and with --cfg.learning.noise=0.0. Gaussian
noise of 0.04 is added to what drives each unit, at every update of every phase, at test
time, too. Test accuracy in % after 5 epochs, seed 0, the only one measured, 1 to 5
minutes each on one core; settings are those of the digits:

                          beta 0.1     beta 0.4
    noise 0.04
      one-sided           11.2         93.2
      centred             86.6         93.7
      holomorphic, N = 4  91.7         94.0
    no noise
      one-sided           91.3         not measured

Published (Laborieux and Zenke 2022, 50 epochs): one-sided 10.5 and 96.4, holomorphic
with 10 points 97.8 at 0.4; without noise one-sided 98.0 at 0.1.
"""

from examples.energy_based_recipes import changed, recipe
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return changed(
        recipe("equilibrium_propagation", "mnist"),
        model={"activation": "shifted_sigmoid"},
        learning={"beta": 0.1, "noise": 0.04},
        optimizer={"name": "sgd", "learning_rates": (0.02,), "schedule": "constant"},
        top={"batch_size": 20, "num_epochs": 5},
    )
