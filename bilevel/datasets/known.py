"""The SHA-256 of the original files of the data sets that have a loader, and Omniglot.

`bilevel.datasets.manifest.verify` compares with them. Of MNIST and Fashion-MNIST these
are the files with the md5 that was published; of ijcnn1 those of the LIBSVM collection;
of Omniglot the owner's archives, and the images as NumPy arrays (github
bitsandscraps/omniglot), which were compared with the owner's.

Example:
    >>> sorted(SHA256)
    ['fashion_mnist', 'ijcnn1', 'mnist', 'omniglot']
"""

from collections.abc import Mapping

SHA256: Mapping[str, Mapping[str, str]] = {
    "fashion_mnist": {
        "t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
        "train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
    },
    "ijcnn1": {
        "ijcnn1.bz2": (
            "450dee8470b168e47b9fae1fc160396b8a809c675737837fce3acd51dcdc0481"
        ),
        "ijcnn1.t.bz2": (
            "acd1db430684fdd3f0c768ecc49aa8e749d0004fc117611220c2aa576a7b6a24"
        ),
    },
    "mnist": {
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
    },
    "omniglot": {
        "all_runs.zip": (
            "437c1eeab0af8484112e1b4cc0f3d541ec727f7c47b9b202da738af9dfd6c325"
        ),
        "images_background.npz": (
            "8bf84167413cd00beacdce3fe582f780ab538d8dbef043a6d688f2527bbce199"
        ),
        "images_background_small1.zip": (
            "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4"
        ),
        "images_background_small2.zip": (
            "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f"
        ),
        "images_evaluation.npz": (
            "0b84c7ffd94c4841c0040e529c86a82eaaccb986d8eadad5673f7991b7475276"
        ),
    },
}
