"""Where data lies, and how a possibly compressed file is read and checked."""

import bz2
import contextlib
import lzma
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

DATA_VARIABLE = "BILEVEL_DATA"


def find(data_dir: StrPath | None, name: str, files: Sequence[str] = ()) -> Path:
    """Returns the folder of a data set, with all of its files present.

    Args:
        data_dir: the folder that holds one sub-folder per data set; by default the
            environment variable `BILEVEL_DATA`.
        name: the data set's sub-folder, for instance `"mnist"`.
        files: names of the files that must lie in it.

    Returns:
        `data_dir / name`.

    Raises:
        FileNotFoundError: no folder was given, or the sub-folder or some of the files
            are missing; the message lists them and says how to point to them.
        ValueError: `data_dir` is the address of a remote folder.

    Cost: one file-system look-up per file; nothing is opened or downloaded.

    Example:
        >>> find("data", "mnist", ["train-images-idx3-ubyte.gz"])
        Traceback (most recent call last):
            ...
        FileNotFoundError: Data set 'mnist': there is no folder data/mnist. ...
    """
    needed = f" Needed in a folder named '{name}': {', '.join(files)}." if files else ""
    advice = (
        f" Set data_dir (programs: --data_dir=...) or the environment variable "
        f"{DATA_VARIABLE} to the folder that contains '{name}'."
    )
    root = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE)
    # An empty variable would mean the current folder, which nobody intends.
    if not root or not os.fspath(root):
        raise FileNotFoundError(
            f"Data set '{name}': no data_dir was given and {DATA_VARIABLE} is not set."
            f"{needed}{advice}"
        )
    folder = local(root) / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Data set '{name}': there is no folder {folder}.{needed}{advice}"
        )
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"Data set '{name}': {len(missing)} of {len(files)} files are missing from "
            f"{folder}: {', '.join(missing)}. Put them there, or look elsewhere:"
            f"{advice}"
        )
    return folder


def local(path: StrPath) -> Path:
    """Returns the path of a local file or folder, `~` expanded.

    A shell leaves `~` in `--workdir=~/runs` as it is, and `gs://bucket/runs` would be a
    folder named `gs:`.

    Raises:
        ValueError: it is the address of something remote, or `~name` is nobody's.

    Example:
        >>> local("~/runs") == Path.home() / "runs"
        True
        >>> local("gs://bucket/runs")
        Traceback (most recent call last):
            ...
        ValueError: gs://bucket/runs is no local path: ...
    """
    text = os.fspath(path)
    # `Path` makes one slash of two; a single letter is a drive of Windows.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(
            f"{text} is no local path: remote folders are not supported; give a folder"
            " of this machine, or mount the remote one"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # there is no such user, or no home
        raise ValueError(f"{text}: {error}") from error


def replace(path: StrPath, make: Callable[[Path], object]) -> None:
    """Writes a file in one step: its old content or all of the new, never a part.

    Args:
        path: the file; a `.<name>.tmp` beside it is there for a moment.
        make: writes the file that it is given.

    Raises:
        OSError: the disk refuses; the old file is as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> replace(path, lambda file: file.write_text("abc"))
        >>> path.read_text()
        'abc'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    # In a folder that was received it may be a link to a file of ours.
    temporary.unlink(missing_ok=True)
    try:
        make(temporary)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)  # a power cut could undo the renaming


def sync(path: StrPath) -> None:
    """Waits until a file, or the list of names of a folder, is on the disk."""
    if os.name == "nt":  # Windows syncs no folder, and no file opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: StrPath, line: str) -> None:
    r"""Appends a line to a file: all of it, or nothing of it where the disk refuses.

    A kill after this loses nothing, a power cut may (see `sync`). No link is followed.

    Args:
        path: the file; made if it is not there. If it ends in half a line, of a process
            that was killed, the new line does not become a part of that one.
        line: with its line feed.

    Raises:
        OSError: the disk refuses; the file is as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> _ = path.write_text("1\n2")
        >>> append(path, "3\n")
        >>> path.read_text().split()
        ['1', '2', '3']
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        rest = line.encode()
        if size:
            file.seek(size - 1)
            rest = rest if file.read(1) == b"\n" else b"\n" + rest
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def replace_bytes(path: StrPath, content: bytes) -> None:
    """Writes a file in one step, as `replace` does."""
    replace(path, lambda file: file.write_bytes(content))


def replace_text(path: StrPath, text: str) -> None:
    """Writes a text file in one step, as `replace` does."""
    replace_bytes(path, text.encode())


class _Decompressor(Protocol):
    """What the decompressors of zlib, bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_GZIP_WBITS = 31  # zlib: expect a gzip header and check its CRC and length

_DECOMPRESSORS: dict[str, tuple[str, Callable[[], _Decompressor]]] = {
    ".gz": ("gzip", lambda: zlib.decompressobj(_GZIP_WBITS)),
    ".bz2": ("bzip2", bz2.BZ2Decompressor),
    ".xz": ("xz", lzma.LZMADecompressor),
}


def read_bytes(path: StrPath) -> bytes:
    """Reads a whole file and undoes the compression its suffix names.

    `.gz`, `.bz2` and `.xz` are decompressed, anything else is returned as it is.
    Several compressed streams in a row are joined, zeros between them skipped. All
    checksums are verified and bytes that belong to no stream are an error, whereas
    `bz2.open` and `lzma.open` silently drop a damaged second stream.

    Args:
        path: the file.

    Returns:
        The decompressed content.

    Raises:
        OSError: the file cannot be read (`FileNotFoundError`, ...).
        ValueError: the compressed stream is corrupt or truncated.

    Cost: holds the compressed and the decompressed content in memory.

    Example:
        >>> import gzip, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.gz"
        >>> _ = path.write_bytes(gzip.compress(b"abc"))
        >>> read_bytes(path)
        b'abc'
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix not in _DECOMPRESSORS:
        return data
    kind, new_decompressor = _DECOMPRESSORS[path.suffix]
    try:
        return _decompress(data, new_decompressor)
    # bz2 reports damage as OSError; the file itself was read above.
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        came = "an empty file" if not data else f"{len(data)} bytes that are not one"
        raise ValueError(
            f"{path}: expected a complete {kind} stream, got {came} ({error}). The "
            "file is corrupt or truncated; fetch it again."
        ) from error


def _decompress(data: bytes, new_decompressor: Callable[[], _Decompressor]) -> bytes:
    parts = []
    while data or not parts:
        decompressor = new_decompressor()
        parts.append(decompressor.decompress(data))
        if not decompressor.eof:
            raise EOFError("it ends before the end-of-stream marker")
        data = decompressor.unused_data.lstrip(b"\0")
    return b"".join(parts)
