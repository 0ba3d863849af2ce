"""The LIBSVM text format, and the ijcnn1 data set, which comes in it."""

import operator
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bilevel.datasets import manifest
from bilevel.datasets.examples import Examples, Splits
from bilevel.datasets.files import StrPath, find, read_bytes

_IJCNN1_FILES = ("ijcnn1.bz2", "ijcnn1.t.bz2")
_IJCNN1_FEATURES = 22


def read_libsvm(path: StrPath, num_features: int | None = None) -> Examples:
    r"""Reads examples in LIBSVM text, plain or compressed (`.gz`, `.bz2`, `.xz`).

    One example per line, `<label> <index>:<value> <index>:<value> ...`, with indices
    that start at 1 and ascend strictly; features that are not listed are zero. As in
    LIBSVM itself, blank lines and comments are errors, and the last line may lack its
    line feed (so a plain file cut in the middle of a number cannot be recognised).

    Args:
        path: the file.
        num_features: `d`; by default the largest index in the file. Pass it whenever
            several files share their features, as the last ones may be absent in one.

    Returns:
        inputs float32 `[n, d]`, dense; labels float64 `[n]`, as written in the file.

    Raises:
        OSError: the file cannot be read.
        TypeError: `num_features` is not an integer.
        ValueError: `num_features` is below 1; the compressed stream is corrupt or
            truncated; the file is empty; or, with file name and line number, a token
            is malformed, an index is 0, does not ascend or exceeds `num_features`, or
            a label or value is not finite (a value: in float32); or the dense array
            does not fit in memory.

    Cost: linear, about 0.7 s per million listed values; beside the dense array about
    70 bytes of memory per listed value for a moment, the text included.

    References:
        C.-C. Chang, C.-J. Lin, LIBSVM: a library for support vector machines, ACM
        TIST 2(3), 2011; the README of LIBSVM, section "Installation and Data Format".

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two"
        >>> _ = path.write_text("+1 1:0.5 3:2\n-1 2:1\n")
        >>> read_libsvm(path).inputs.tolist()
        [[0.5, 0.0, 2.0], [0.0, 1.0, 0.0]]
    """
    path = Path(path)
    if num_features is not None and operator.index(num_features) < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}.")
    text = read_bytes(path)
    if not text.strip():
        raise ValueError(
            f"{path}: expected LIBSVM text, got an empty file; check the path or fetch "
            "it again."
        )
    labels, rows, indices, values = _parse(text, path)
    _check_labels(path, labels)
    _check_entries(path, rows, indices, values, num_features)
    width = num_features if num_features is not None else indices.max(initial=0)
    try:
        inputs = np.zeros((len(labels), width), np.float32)
    except (MemoryError, ValueError) as error:  # ValueError: more than numpy can index
        raise ValueError(
            f"{path}: a dense float32 [{len(labels)}, {width}] does not fit in memory; "
            "pass num_features to find the line with that index, if it is a mistake."
        ) from error
    inputs[rows, indices - 1] = values
    return Examples(inputs=inputs, labels=labels)


def _parse(
    text: bytes, path: Path
) -> tuple[
    NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]
]:
    """Returns labels `[n]`, and row, index and value of each listed entry."""
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line feed is not a line
    labels, counts = array("d"), array("q")
    indices, values = array("q"), array("d")
    for number, line in enumerate(lines, 1):
        try:
            label, *tokens = line.split()
            entries = [token.partition(b":") for token in tokens]
            labels.append(float(label))
            counts.append(len(entries))
            indices.extend([int(index) for index, _, _ in entries])
            values.extend([float(value) for _, _, value in entries])
        except (ValueError, OverflowError):
            raise _token_error(path, number, line) from None
        if b"_" in line:  # Python reads 1_0 as 10; the format knows no such thing
            raise _token_error(path, number, line)
    rows = np.repeat(np.arange(len(labels)), np.array(counts, np.int64))
    return (
        np.array(labels, np.float64),
        rows.astype(np.int64),
        np.array(indices, np.int64),
        np.array(values, np.float64),
    )


def _is_number(text: bytes, kind: type[int] | type[float]) -> bool:
    try:
        array("q" if kind is int else "d", [kind(text)])
    except (ValueError, OverflowError):
        return False
    return b"_" not in text


def _token_error(path: Path, number: int, line: bytes) -> ValueError:
    """Finds what is wrong in a line that did not parse; speed does not matter here."""
    where = f"{path}, line {number}:"
    expected = "expected '<label> <index>:<value> ...'"
    if not line.split():
        return ValueError(f"{where} {expected}, got a blank line; remove it.")
    label, *tokens = line.split()
    if not _is_number(label, float):
        came = f"the label {_show(label)}"
    else:
        bad = next(token for token in tokens if not _is_entry(token))
        came = f"the token {_show(bad)}"
    return ValueError(
        f"{where} {expected}, got {came}; correct the line or fetch the file again."
    )


def _is_entry(token: bytes) -> bool:
    index, _, value = token.partition(b":")
    return _is_number(index, int) and _is_number(value, float)


def _show(token: bytes) -> str:
    text = token.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _check_labels(path: Path, labels: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(labels))
    if len(bad):
        raise ValueError(
            f"{path}, line {bad[0] + 1}: expected a finite label, got "
            f"{labels[bad[0]]}; correct or remove the line."
        )


def _check_entries(
    path: Path,
    rows: NDArray[np.int64],
    indices: NDArray[np.int64],
    values: NDArray[np.float64],
    num_features: int | None,
) -> None:
    """Raises for the first entry that breaks a rule; one vectorised pass per rule."""
    previous = np.roll(indices, 1)
    same_row = np.roll(rows, 1) == rows
    same_row[:1] = False
    with np.errstate(over="ignore"):  # overflow is what the last rule looks for
        finite = np.isfinite(values.astype(np.float32))
    limit = np.iinfo(np.int64).max if num_features is None else num_features
    rules = (
        (
            indices < 1,
            "expected indices from 1 on",
            "number the features from 1, not from 0",
        ),
        (
            same_row & (indices <= previous),
            "expected strictly ascending indices",
            "sort the line and drop repeated indices",
        ),
        (
            indices > limit,
            f"expected indices up to num_features={num_features}",
            "pass a larger num_features or none",
        ),
        (
            ~finite,
            "expected values that are finite in float32",
            "correct or remove the line",
        ),
    )
    for broken, expected, advice in rules:
        if broken.any():
            first = int(broken.argmax())
            raise ValueError(
                f"{path}, line {rows[first] + 1}: {expected}, got "
                f"'{indices[first]}:{values[first]:g}'; {advice}."
            )


def load_ijcnn1(data_dir: StrPath | None = None, *, verify: bool = True) -> Splits:
    """Loads ijcnn1, a two-class problem with 9.7 % positive training examples.

    The first ten features are one-hot, the others continuous.

    Args:
        data_dir: the folder that contains the folder `ijcnn1`; by default the
            environment variable `BILEVEL_DATA`.
        verify: refuse files that are not the original ones, or not those of the list
            SHA256SUMS in their folder (see `manifest.verify`). Switched off, any files
            of this form are read: for trying out files of your own.

    Returns:
        49990 training and 91701 test examples: inputs float32 `[n, 22]` as in the
        file, labels int32 `[n]`, **the file's -1 and +1 mapped to 0 and 1**.

    Raises:
        FileNotFoundError: files are missing; the message lists them.
        ValueError: a file is damaged or was changed (`manifest.DamagedFileError`), or
            holds other shapes or labels.

    Cost: about 2 s, a quarter of it decompression; 13 MB of returned arrays.

    References:
        D. Prokhorov, IJCNN 2001 neural network competition; in LIBSVM form from
        C.-C. Chang, C.-J. Lin, LIBSVM Data: Classification (Binary Class).

    Example:
        >>> load_ijcnn1("data").test.inputs.shape  # doctest: +SKIP
        (91701, 22)
    """
    folder = find(data_dir, "ijcnn1", _IJCNN1_FILES)
    if verify:
        manifest.verify(folder, "ijcnn1", _IJCNN1_FILES)
    train, test = (folder / file for file in _IJCNN1_FILES)
    return Splits(train=_load_part(train, 49990), test=_load_part(test, 91701))


def _load_part(path: Path, num: int) -> Examples:
    """Reads one of the two files and checks it."""
    examples = read_libsvm(path, num_features=_IJCNN1_FEATURES)
    if len(examples.labels) != num:
        raise ValueError(
            f"{path}: expected {num} examples, got {len(examples.labels)}; fetch the "
            "original file."
        )
    other = np.flatnonzero(~np.isin(examples.labels, (-1.0, 1.0)))
    if len(other):
        raise ValueError(
            f"{path}, line {other[0] + 1}: expected the label -1 or 1, got "
            f"{examples.labels[other[0]]:g}; fetch the original file."
        )
    return examples._replace(labels=(examples.labels > 0).astype(np.int32))
