"""The 8 x 8 handwritten digits that scikit-learn carries: real data with no files."""

import numpy as np

from bilevel.datasets.examples import Examples, Splits, split


def load_digits(seed: int = 0, *, num_train: int = 1437, num_test: int = 360) -> Splits:
    """Loads scikit-learn's digits and splits them at random, class by class.

    Args:
        seed: of the split; the same seed gives the same bits.
        num_train: number of training examples.
        num_test: number of test examples. Of the 1797 examples, those in neither part
            are left out.

    Returns:
        Disjoint, stratified parts in random order: inputs float32 `[n, 64]` in [0, 1]
        (grey level / 16), labels int32 `[n]` in 0..9.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: the seed or a size is not an integer.
        ValueError: the sizes ask for more than 1797, or something is negative.

    Cost: about 20 ms, after the import of scikit-learn (about 1 s).

    References:
        E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, UCI machine
        learning repository, 1998 (its test part).

    Example:
        >>> data = load_digits(seed=0, num_train=1000, num_test=500)
        >>> data.train.inputs.shape, data.test.labels.shape
        ((1000, 64), (500,))
    """
    try:
        import sklearn.datasets
    except ImportError as error:
        raise ImportError(
            "load_digits needs scikit-learn, which is not installed: "
            "pip install 'bilevel[examples]'"
        ) from error
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    examples = Examples(
        inputs=(np.asarray(pixels) / 16).astype(np.float32),
        labels=np.asarray(labels).astype(np.int32),
    )
    train, test = split(examples, (num_train, num_test), seed, stratified=True)
    return Splits(train=train, test=test)
