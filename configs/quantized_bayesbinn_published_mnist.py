"""BayesBiNN by its published recipe on MNIST, 784-2048-2048-2048-10.

    C=configs/quantized_bayesbinn_published_mnist.py
    python examples/quantized.py --config=$C

Expect a test accuracy of 98.33 % after 20 epochs (one seed, 34 minutes on a busy core);
the authors' log has 98.38. Theirs are 500 epochs, over which the learning rate falls as
a cosine: in the first 20 it is constant, to 0.4 %. As there, 10 % of the training
images are held out (98.18 %), inputs and units are dropped with probability 0.2, and
batch normalisation has no parameters. The test is by the more likely weights sgn(x),
with statistics of batch normalisation that are theirs, on training images.
"""

from examples.quantized_methods import Config, Model, Optimizer, Quantization


def get_config() -> Config:
    """The configuration."""
    return Config(
        dataset="mnist",
        num_validation=6000,
        inputs="standard",
        model=Model(hidden=(2048, 2048, 2048), dropout=0.2),
        quantization=Quantization(method="bayesbinn"),
        optimizer=Optimizer(learning_rate=1e-4, schedule="constant", momentum=0.0),
    )
