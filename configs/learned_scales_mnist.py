"""Scales of weights of 2 to 4 bits on MNIST, 784-128-128-10.

    python examples/learned_scales.py --config=configs/learned_scales_mnist.py

Test accuracy in %, seeds 0 to 2, one scale for each layer, seven minutes for all on one
core; real weights have 97.73 ± 0.14:

                     2 bits         3 bits         4 bits
    max_abs          91.72 ± 0.66   96.94 ± 0.16   97.67 ± 0.10
    least_squares    96.96 ± 0.10   97.68 ± 0.06   97.77 ± 0.14
    lsq              97.51 ± 0.14   97.74 ± 0.12   97.88 ± 0.14
    bilevel          97.28 ± 0.08   97.74 ± 0.09   97.80 ± 0.12

    --cfg.join=false
    least_squares    97.00 ± 0.13   97.58 ± 0.06   97.79 ± 0.08
    lsq              97.42 ± 0.10   97.75 ± 0.09   97.83 ± 0.14

At 2 bits bilevel scales are better than calibrated ones (by 0.3 and 5.6 points), and by
0.1 to 0.2 points worse than those of LSQ, which learn in every step; with more bits all
but max_abs are as good as each other.
"""

from examples.learned_scales import Config


def get_config() -> Config:
    """The configuration."""
    return Config(
        dataset="mnist",
        num_seeds=3,
        num_train=50_000,
        num_validation=10_000,
        hidden=(128, 128),
        num_epochs=5,
        batch_size=100,
        outer_every=20,
        outer_batch=500,
    )
