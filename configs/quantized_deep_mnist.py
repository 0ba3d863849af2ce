"""Binary weights in deep networks without normalisation on MNIST, 784-256 x 8-10.

    C=configs/quantized_deep_mnist.py
    python examples/quantized.py --config=$C
    python examples/quantized.py --config=$C --cfg.quantization.method=clipped_ste

and with none, ste and mirror_descent_tanh (--cfg.quantization.start=1
--cfg.quantization.end=100) as the method; 4 layers: --cfg.model.hidden=512,512,512,512.

A setting in which a rule that adapts to each weight might help. Test accuracy in %
after 5 epochs, seeds 0 to 2 (with --cfg.num_seeds=3), a minute each on one core; the
learning rates are the best of 0.003, 0.01 and 0.03 on validation images: 0.01, but for
real weights of 4 layers 0.03:

                                     8 x 256            4 x 512
    real weights                     97.79 ± 0.05       98.18 ± 0.09
    clipped straight-through         97.62 ± 0.10       98.08 ± 0.06
    straight-through                 97.62 ± 0.10       98.04 ± 0.03
    AdaSTE, centred nudges           97.58 ± 0.02       98.02 ± 0.11
    mirror descent (MD-tanh)         97.52 ± 0.13       97.93 ± 0.07

It does not: but for MD-tanh the binary ones lie within 0.06 points of each other.
"""

import dataclasses

from examples.quantized_methods import Config, Model, Optimizer
from examples.quantized_recipes import recipe


def get_config() -> Config:
    """The configuration."""
    return dataclasses.replace(
        recipe("adaste", "mnist"),
        num_epochs=5,
        model=Model(hidden=(256,) * 8, normalise=False),
        optimizer=Optimizer(learning_rate=0.01),
    )
