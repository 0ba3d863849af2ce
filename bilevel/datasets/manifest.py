"""Versions of data: SHA-256 of files, and fingerprints of the arrays that are used.

A folder of data, or a checkpoint, carries a file SHA256SUMS, as `sha256sum` writes it:

    cd folder && sha256sum -c SHA256SUMS

Ours begins with a comment, the SHA-256 of the lines below it: damage to the list itself
is not blamed on a file that is whole, and a list that was cut short is noticed.
"""

import hashlib
import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.datasets.files import StrPath, local, replace_bytes
from bilevel.datasets.known import SHA256

NAME = "SHA256SUMS"
"""The name of the list in a folder."""

# Where a name holds one of _ESCAPES, a backslash opens the line.
_LINE = re.compile(r"(?P<mark>\\?)(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r"}
_CHUNK = 1 << 20


class DamagedFileError(ValueError):
    """A file is missing, is not what the list of checksums says, or is not in it.

    Attributes:
        names: the files, relative to the folder.
    """

    def __init__(self, message: str, names: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names: tuple[str, ...] = tuple(names)


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
        names: files relative to it; by default all files in it and below, but for
            those of which the name, or that of a folder, begins with a dot.

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
    folder = local(folder)
    chosen = _files(folder) if names is None else names
    return write_digests(folder, {one: file_sha256(folder / one) for one in chosen})


def write_digests(folder: StrPath, digests: Mapping[str, str]) -> dict[str, str]:
    """Writes a list as `write` does, of checksums that are known.

    Args:
        folder: the folder.
        digests: `{name: sha256}`.

    Returns:
        The same, in the order of the list.

    Raises:
        OSError: the list cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = write_digests(folder, {"later.txt": "0" * 64})
        >>> read(folder)["later.txt"][:8]
        '00000000'
    """
    ordered = dict(sorted(digests.items()))
    body = os.fsencode("".join(_line(*one) for one in ordered.items()))
    replace_bytes(local(folder) / NAME, _head(body) + b"\n" + body)
    return ordered


def read(folder: StrPath) -> dict[str, str]:
    """Reads the list of a folder; one written by `sha256sum` will do.

    Returns:
        `{name: sha256}`.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is damaged.
    """
    path = local(folder) / NAME
    data = path.read_bytes()
    head, _, body = data.partition(b"\n")
    if not data:
        raise _no_list(path, "it is empty")
    if head.startswith(b"#") and head != _head(body):
        raise _no_list(path, "its first line is not the sha256 of the others")
    found: dict[str, str] = {}
    # Not splitlines: file names may hold what Unicode counts as the end of a line.
    for number, line in enumerate(os.fsdecode(data).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise _no_list(path, f"line {number} is not '<sha256>  <file name>'")
        name = _unescaped(match["name"]) if match["mark"] else match["name"]
        name, digest = posixpath.normpath(name), match["digest"].lower()
        if found.setdefault(name, digest) != digest:
            raise _no_list(path, f"it has two checksums of {name}")
    return found


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
    folder = local(folder)
    wrong = differences(folder, read(folder) if expected is None else expected)
    if wrong:
        lines = "\n  ".join(f"{name}: {what}" for name, what in wrong.items())
        raise DamagedFileError(f"damaged files in {folder}:\n  {lines}", wrong)


def differences(folder: StrPath, expected: Mapping[str, str]) -> dict[str, str]:
    """Returns `{name: what is wrong}` of the files that are not as expected.

    Args:
        folder: the folder.
        expected: `{name: sha256}`.

    Cost: 0.1 s per 100 MB.

    Example:
        >>> differences("nowhere", {"a.txt": "0" * 64})
        {'a.txt': 'is missing'}
    """
    folder = local(folder)
    # Nothing else is read for a list that came with a folder from elsewhere.
    found = {
        one: _OUTSIDE if _is_outside(one) else _difference(folder / one, to)
        for one, to in expected.items()
    }
    return {name: what for name, what in found.items() if what is not None}


_OUTSIDE = "is not in the folder"


def _is_outside(name: str) -> bool:
    path = posixpath.normpath(name)
    return posixpath.isabs(path) or path.partition("/")[0] == ".."


def _difference(path: Path, expected: str) -> str | None:
    if not path.is_file():
        return "is missing"
    try:
        came, size = file_sha256(path), path.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if came == expected:
        return None
    return f"expected sha256 {expected}, got {came} ({size} bytes)"


def verify(folder: StrPath, name: str, files: Sequence[str]) -> None:
    """Refuses files of a data set that are not the version they should be.

    If the folder has a list SHA256SUMS, that decides: so you keep versions of your own
    data, or of a changed copy. If not, the checksums of the originals decide, of those
    data sets that `bilevel.datasets.known` has. Of others nothing is verified.

    Args:
        folder: of the data set.
        name: of the data set, `"mnist"`.
        files: those that will be read.

    Raises:
        DamagedFileError: files are missing or changed, or not in the list; all of them
            are named, with what was expected, what came, and what to do.

    Cost: 0.1 s per 100 MB.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("abc")
        >>> verify(folder, "letters", ["a.txt"])  # nothing is known about it
        >>> _ = write(folder)
        >>> verify(folder, "letters", ["a.txt"])
    """
    folder = local(folder)
    has_list = (folder / NAME).is_file()
    try:
        expected = read(folder) if has_list else SHA256.get(name, {})
        unlisted = [file for file in files if file not in expected]
        if has_list and unlisted:
            message = f"{folder / NAME} has no checksum of {', '.join(unlisted)}"
            raise DamagedFileError(message, unlisted)
        check(folder, {file: expected[file] for file in files if file in expected})
    except DamagedFileError as error:
        decides = f"the list {NAME} in its folder" if has_list else "the original files"
        command = f"{shlex.join(['sha256sum', *files])} > {NAME}"
        raise DamagedFileError(
            f"Data set '{name}', compared with {decides}: {error}\nFetch the files"
            " again. If they are meant to be as they are, make them a version of their"
            f" own: cd {shlex.quote(str(folder))} && {command}. With verify=False they"
            " are read without verification.",
            error.names,
        ) from error


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
    names = [one.relative_to(folder) for one in folder.rglob("*") if one.is_file()]
    return [
        name.as_posix()
        for name in names
        if name != Path(NAME) and not any(part.startswith(".") for part in name.parts)
    ]


def _head(body: bytes) -> bytes:
    return f"# {hashlib.sha256(body).hexdigest()}".encode()


def _line(name: str, digest: str) -> str:
    escaped = "".join(_ESCAPES.get(one, one) for one in name)
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _unescaped(name: str) -> str:
    plain = {escape: one for one, escape in _ESCAPES.items()}
    return re.sub(r"\\.", lambda match: plain.get(match[0], match[0]), name)


def _no_list(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is no list of checksums: {why}", [NAME])
