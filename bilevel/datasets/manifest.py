"""Versions of data: SHA-256 of files, and fingerprints of the arrays that are used.

A folder of data, or a checkpoint, carries a file SHA256SUMS, as `sha256sum` writes it:

    cd folder && sha256sum -c SHA256SUMS

Ours ends in a comment with the SHA-256 of the lines above it, so that damage to the
list itself is not blamed on a file that is whole.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.datasets.files import StrPath

NAME = "SHA256SUMS"
"""The name of the list in a folder."""

_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>.+)")
_CHUNK = 1 << 20


class DamagedFileError(ValueError):
    """A file is missing, or is not what the list of checksums says.

    Attributes:
        names: the files, relative to the folder.
    """

    def __init__(self, message: str, names: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


def file_sha256(path: StrPath) -> str:
    """Returns the SHA-256 of a file, 64 hex digits.

    Cost: 0.1 s per 100 MB once the file is in memory.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write(folder: StrPath, names: Iterable[str] | None = None) -> dict[str, str]:
    """Writes the list of a folder, in one step and onto the disk.

    Args:
        folder: the folder.
        names: files relative to it; by default all files in it and below, but those
            whose names begin with a dot.

    Returns:
        `{name: sha256}`.

    Raises:
        OSError: a file cannot be read, or the list not be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("abc")
        >>> write(folder)["a.txt"][:8]
        'ba7816bf'
        >>> check(folder)
    """
    folder = Path(folder)
    chosen = sorted(_files(folder) if names is None else names)
    digests = {name: file_sha256(folder / name) for name in chosen}
    body = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    temporary = folder / f".{NAME}.tmp"
    with temporary.open("w") as file:
        file.write(f"{body}# {_text_sha256(body)}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)
    return digests


def read(folder: StrPath) -> dict[str, str]:
    """Reads the list of a folder; one written by `sha256sum` will do.

    Returns:
        `{name: sha256}`.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is damaged.
    """
    path = Path(folder) / NAME
    data = path.read_bytes()
    body, found, last = data.rpartition(b"# ")
    is_whole = not found or last == f"{hashlib.sha256(body).hexdigest()}\n".encode()
    lines = (body if found else data).decode(errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    if not is_whole or None in matches:
        raise DamagedFileError(f"{path} is damaged: it is no list of checksums", [NAME])
    return {match["name"]: match["digest"] for match in matches if match is not None}


def check(folder: StrPath, expected: Mapping[str, str] | None = None) -> None:
    """Compares files with their checksums.

    Args:
        folder: the folder.
        expected: `{name: sha256}`, by default the list in the folder.

    Raises:
        FileNotFoundError: there is no list.
        DamagedFileError: files are missing or changed; all of them are named, with what
            was expected.
    """
    folder = Path(folder)
    wrong = {}
    for name, digest in (read(folder) if expected is None else expected).items():
        path = folder / name
        if not path.is_file():
            wrong[name] = "is missing"
        elif (came := file_sha256(path)) != digest:
            size = path.stat().st_size
            wrong[name] = f"expected sha256 {digest}, got {came} ({size} bytes)"
    if wrong:
        lines = "\n  ".join(f"{name}: {what}" for name, what in wrong.items())
        raise DamagedFileError(f"damaged files in {folder}:\n  {lines}", wrong)


def fingerprint(array: Any) -> dict[str, Any]:
    """Returns shape, dtype and SHA-256 of an array, in JSON.

    Args:
        array: NumPy or JAX array of any dtype but object; its bytes in row-major order
            are what counts.

    Cost: 0.1 s per 100 MB.

    Example:
        >>> fingerprint(np.zeros((2, 3), np.float32))["shape"]
        [2, 3]
    """
    array = np.asarray(array)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha256": sha256(array),
    }


def sha256(array: Any) -> str:
    """Returns the SHA-256 of the bytes of a JAX or NumPy array, 64 hex digits."""
    # As bytes: bfloat16 and its like have no buffer that hashlib would read.
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(data.data).hexdigest()


def _files(folder: Path) -> list[str]:
    return [
        one.relative_to(folder).as_posix()
        for one in folder.rglob("*")
        if one.is_file() and not one.name.startswith(".") and one != folder / NAME
    ]


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
