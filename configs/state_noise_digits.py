"""Equilibrium propagation with noisy states on digits, 64-256-256-10, shifted sigmoid.

    N=configs/state_noise_digits.py
    python examples/energy_based.py --config=$N --cfg.learning.nudging=positive
    python examples/energy_based.py --config=$N --cfg.learning.nudging=centred
    python examples/energy_based.py --config=$N \
        --cfg.learning.rule=holomorphic_equilibrium_propagation

each with --cfg.learning.beta=0.1 and 0.4, and with --cfg.learning.noise=0.0. Gaussian
noise of 0.04 is added to what drives each unit, at every update of every phase, at test
time, too. Test accuracy in %, seeds 0 to 2, 10 to 50 s each on one core:

                          beta 0.1                            beta 0.4
    noise 0.04
      one-sided           10.5 ± 0.7                          83.0 ± 4.1
      centred             31.4 ± 37.8 (10.3, 8.9, 75.0)       90.5 ± 3.0
      holomorphic, N = 4  79.4 ± 4.8                          91.6 ± 2.4
    no noise
      one-sided           93.1 ± 0.3                          91.8 ± 0.6
      centred             94.2 ± 0.5                          93.0 ± 1.0

As published for MNIST (Laborieux and Zenke 2022): with noise, one-sided nudges of 0.1
fail and those of 0.4 survive; holomorphic ones of 0.4 hold. The learning rate is the
largest of 0.02, 0.05 and 0.1 at which the one-sided rule trains without noise on all
seeds.
"""

from examples.energy_based_recipes import state_noise
from examples.energy_based_rules import Config


def get_config() -> Config:
    """The configuration."""
    return state_noise("digits", num_epochs=20)
