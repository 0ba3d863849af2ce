"""Number formats of 4 to 16 bits on MNIST, 784-128-128-10.

    python examples/number_formats.py --config=configs/number_formats_mnist.py

Test accuracy in %, seeds 0 to 2, with a scale for each layer or output channel, of
weights that were rounded, and of those trained for three epochs more; ten minutes for
all on one core:

                       rounded                       trained
                  layer          channel        layer          channel
    real weights  98.24 ± 0.11
    int4          98.15 ± 0.14   98.17 ± 0.20   98.25 ± 0.14   98.24 ± 0.17
    int5          98.24 ± 0.12   98.23 ± 0.13   98.28 ± 0.12   98.26 ± 0.13
    int6          98.25 ± 0.13   98.28 ± 0.12   98.29 ± 0.13   98.26 ± 0.14
    int7          98.25 ± 0.14   98.26 ± 0.13   98.26 ± 0.14   98.26 ± 0.13
    int8          98.24 ± 0.13   98.25 ± 0.12   98.26 ± 0.14   98.27 ± 0.15
    int16         98.24 ± 0.11   98.24 ± 0.11   98.27 ± 0.15   98.26 ± 0.15
    posit4_0      98.17 ± 0.15   98.18 ± 0.13   98.22 ± 0.09   98.20 ± 0.14
    posit4_1      98.07 ± 0.15   98.06 ± 0.16   97.84 ± 0.14   98.11 ± 0.20
    posit5_0      98.24 ± 0.16   98.26 ± 0.12   98.24 ± 0.19   98.23 ± 0.15
    posit5_1      98.24 ± 0.18   98.20 ± 0.16   98.17 ± 0.19   98.22 ± 0.12
    posit6_0      98.24 ± 0.11   98.24 ± 0.12   98.26 ± 0.09   98.28 ± 0.15
    posit6_1      98.25 ± 0.09   98.22 ± 0.12   98.25 ± 0.15   98.26 ± 0.11
    posit8_0      98.25 ± 0.13   98.24 ± 0.12   98.26 ± 0.14   98.28 ± 0.14
    posit8_1      98.23 ± 0.13   98.26 ± 0.12   98.26 ± 0.12   98.26 ± 0.15
    posit8_2      98.24 ± 0.11   98.23 ± 0.13   98.26 ± 0.12   98.27 ± 0.13
    posit16_1     98.24 ± 0.11   98.24 ± 0.11   98.26 ± 0.15   98.26 ± 0.15
    posit16_2     98.24 ± 0.11   98.24 ± 0.11   98.27 ± 0.15   98.26 ± 0.15
    float4_e2m1fn 98.24 ± 0.15   98.21 ± 0.20   98.24 ± 0.17   98.22 ± 0.15
    float6_e2m3fn 98.26 ± 0.12   98.23 ± 0.12   98.26 ± 0.13   98.28 ± 0.17
    float6_e3m2fn 98.27 ± 0.08   98.21 ± 0.13   98.26 ± 0.13   98.27 ± 0.09
    float8_e3m4   98.25 ± 0.12   98.24 ± 0.12   98.26 ± 0.13   98.28 ± 0.13
    float8_e4m3fn 98.27 ± 0.15   98.21 ± 0.12   98.27 ± 0.13   98.27 ± 0.15
    float8_e5m2   98.27 ± 0.08   98.22 ± 0.13   98.27 ± 0.12   98.27 ± 0.13
    float16       98.24 ± 0.11   98.24 ± 0.11   98.26 ± 0.15   98.27 ± 0.15
    bfloat16      98.24 ± 0.11   98.25 ± 0.11   98.26 ± 0.15   98.27 ± 0.15

With the scale of the least squared error 5 bits of any kind are as good as real weights
on MNIST. Of those of 4 bits posit<4,1> loses 0.2 points, int4 and posit<4,0> 0.1, and
float4 nothing. On Fashion-MNIST (--cfg.dataset=fashion_mnist, 89.45 ± 0.10 with real
weights) it is the same, rounded with a scale for each layer and trained with one for
each channel:

    posit4_1      88.97 ± 0.11   89.28 ± 0.12
    posit4_0      89.18 ± 0.16   89.34 ± 0.11
    int4          89.35 ± 0.08   89.47 ± 0.07
    float4_e2m1fn 89.36 ± 0.18   89.44 ± 0.08

The scale matters more than the format. One that clips nothing (--cfg.scale=max_abs)
puts the largest weight where a posit has few levels; the same columns on MNIST:

    int4          98.07 ± 0.07   98.19 ± 0.18
    float4_e2m1fn 98.15 ± 0.07   98.27 ± 0.09
    int8          98.23 ± 0.12   98.27 ± 0.15
    float8_e4m3fn 98.24 ± 0.13   98.26 ± 0.12
    posit8_0      98.22 ± 0.14   98.22 ± 0.16
    posit8_1      97.59 ± 0.13   97.99 ± 0.16
    posit8_2      92.24 ± 3.22   97.77 ± 0.12
"""

from examples.number_formats import Config


def get_config() -> Config:
    """The configuration."""
    return Config(
        dataset="mnist",
        num_seeds=3,
        hidden=(128, 128),
        num_epochs=10,
        num_more_epochs=3,
    )
