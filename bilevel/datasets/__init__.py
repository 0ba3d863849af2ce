"""Readers for data that lies on disk, splits, and label noise; no downloads.

Everything here returns numpy arrays on the host and imports neither JAX nor (until
`load_digits` is called) scikit-learn. Data sets are `Examples(inputs, labels)`, or
`Splits(train, test)` of two of them. The folder that holds them comes from the
argument `data_dir` or from the environment variable `BILEVEL_DATA`, never from the
code. Letters in shapes: `n` examples, `d` features.

Files that were changed or cut short are refused: `manifest.write(folder)` makes the
list of checksums that a version of your own data is compared with.
"""

from bilevel.datasets import manifest
from bilevel.datasets.digits import load_digits
from bilevel.datasets.examples import Examples, Splits, split
from bilevel.datasets.files import find
from bilevel.datasets.idx import load_fashion_mnist, load_mnist, read_idx
from bilevel.datasets.libsvm import load_ijcnn1, read_libsvm
from bilevel.datasets.noise import (
    NoisyLabels,
    class_swap_noise,
    symmetric_label_noise,
)

__all__ = [
    "Examples",
    "NoisyLabels",
    "Splits",
    "class_swap_noise",
    "find",
    "load_digits",
    "load_fashion_mnist",
    "load_ijcnn1",
    "load_mnist",
    "manifest",
    "read_idx",
    "read_libsvm",
    "split",
    "symmetric_label_noise",
]
