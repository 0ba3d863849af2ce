"""The IDX format, and MNIST and Fashion-MNIST, which come in it."""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bilevel.datasets import manifest
from bilevel.datasets.examples import Examples, Splits
from bilevel.datasets.files import StrPath, find, read_bytes

# Third byte of the magic number -> type; every number in a file is big-endian.
_DTYPES = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_MAX_RANK = 64  # numpy's own limit; the format allows 255

_TRAIN_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
_TEST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
_NUM_CLASSES = 10


def read_idx(path: StrPath) -> NDArray[Any]:
    """Reads one array from an IDX file, plain or compressed (`.gz`, `.bz2`, `.xz`).

    Layout: two zero bytes, a type code (08 ubyte, 09 byte, 0B short, 0C int, 0D float,
    0E double), the rank, one 32-bit size per axis, then the entries in C order, all of
    it big-endian.

    Args:
        path: the file.

    Returns:
        A writable array in native byte order: uint8, int8, int16, int32, float32 or
        float64, with the shape the header states.

    Raises:
        OSError: the file cannot be read.
        ValueError: the compressed stream is corrupt, the header is not an IDX header,
            or the length differs from what the header states (truncated, or trailing
            bytes). The message names the file.

    Cost: about twice the decompressed file in memory for a moment; MNIST's 47 MB of
    training images take about 0.2 s, nearly all of it decompression.

    References:
        Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits,
        section "File formats for the MNIST database".

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a-idx1-ubyte"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
        >>> read_idx(path)
        array([7, 9], dtype=uint8)
    """
    path = Path(path)
    data = read_bytes(path)
    dtype, shape = _read_header(data, path)
    offset = 4 + 4 * len(shape)
    promised = offset + math.prod(shape) * dtype.itemsize
    if len(data) != promised:
        problem = (
            "the file is truncated" if len(data) < promised else "bytes trail the array"
        )
        raise ValueError(
            f"{path}: expected {promised} bytes (after decompression) for "
            f"{dtype.newbyteorder('=')} {list(shape)}, got {len(data)}: {problem}; "
            "fetch it again."
        )
    array = np.ndarray(shape, dtype, buffer=data, offset=offset)
    return array.astype(dtype.newbyteorder("="))


def _read_header(data: bytes, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _DTYPES:
        codes = ", ".join(f"{code:02x}" for code in _DTYPES)
        raise ValueError(
            f"{path}: expected an IDX header (bytes 00 00, a type code out of {codes}, "
            f"the rank), got {data[:4].hex(' ') or 'an empty file'}: this is not an "
            "IDX file, or it is damaged; check the path or fetch it again."
        )
    rank = data[3]
    if not 1 <= rank <= _MAX_RANK:
        raise ValueError(
            f"{path}: expected an IDX rank (fourth byte) from 1 to {_MAX_RANK}, got "
            f"{rank}: the header is damaged; fetch it again."
        )
    if len(data) < 4 + 4 * rank:
        raise ValueError(
            f"{path}: expected {4 + 4 * rank} bytes of header for rank {rank}, got "
            f"{len(data)} bytes in all: the file is truncated; fetch it again."
        )
    return _DTYPES[data[2]], struct.unpack_from(f">{rank}I", data, 4)


def load_mnist(
    data_dir: StrPath | None = None, name: str = "mnist", *, verify: bool = True
) -> Splits:
    """Loads the handwritten digits of MNIST, or another set with the same files.

    Args:
        data_dir: the folder that contains the folder `name`; by default the
            environment variable `BILEVEL_DATA`.
        name: the folder with the four original IDX `.gz` files.
        verify: refuse files that are not the original ones, or not those of the list
            SHA256SUMS in their folder (see `manifest.verify`). Switched off, any files
            of these shapes are read: for trying out files of your own.

    Returns:
        60000 training and 10000 test examples: inputs float32 `[n, 784]` in [0, 1]
        (grey level / 255, rows of the image one after the other), labels int32 `[n]`
        in 0..9, in the order of the files.

    Raises:
        FileNotFoundError: files are missing; the message lists them.
        ValueError: a file is damaged or was changed (`manifest.DamagedFileError`), or
            holds other shapes, types or labels.

    Cost: about 0.7 s and 220 MB of returned arrays.

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to
        document recognition, Proc. IEEE 86(11), 1998.

    Example:
        >>> load_mnist("data").train.inputs.shape  # doctest: +SKIP
        (60000, 784)
    """
    files = (*_TRAIN_FILES, *_TEST_FILES)
    folder = find(data_dir, name, files)
    if verify:
        manifest.verify(folder, name, files)
    return Splits(
        train=_load_part(folder, _TRAIN_FILES, 60000),
        test=_load_part(folder, _TEST_FILES, 10000),
    )


def load_fashion_mnist(
    data_dir: StrPath | None = None, *, verify: bool = True
) -> Splits:
    """Loads the clothing images of Fashion-MNIST from the folder `fashion_mnist`.

    Arguments, result, errors and cost are those of `load_mnist`. Labels: 0 T-shirt,
    1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag,
    9 ankle boot.

    References:
        H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747.

    Example:
        >>> load_fashion_mnist("data").test.labels.shape  # doctest: +SKIP
        (10000,)
    """
    return load_mnist(data_dir, "fashion_mnist", verify=verify)


def _load_part(folder: Path, files: tuple[str, str], num: int) -> Examples:
    """Reads one pair of image and label files and checks it."""
    image_path, label_path = (folder / file for file in files)
    images, labels = read_idx(image_path), read_idx(label_path)
    _check_array(image_path, images, (num, 28, 28))
    _check_array(label_path, labels, (num,))
    if labels.max() >= _NUM_CLASSES:
        raise ValueError(
            f"{label_path}: expected labels from 0 to {_NUM_CLASSES - 1}, got "
            f"{labels.max()} at position {labels.argmax()}; fetch the file again."
        )
    inputs = np.divide(images.reshape(num, -1), np.float32(255), dtype=np.float32)
    return Examples(inputs=inputs, labels=labels.astype(np.int32))


def _check_array(path: Path, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(
            f"{path}: expected uint8 {list(shape)}, got {array.dtype} "
            f"{list(array.shape)}; check that this is the original file of that name."
        )
