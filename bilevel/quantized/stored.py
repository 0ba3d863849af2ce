"""Exports as files: packed codes, scales and names, under one SHA-256."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.number_formats.description import describe, described
from bilevel.quantized.export import Export, Exported

MAGIC = b"bilevel export 1\n"
_CHUNK = 1 << 20  # codes packed at a time, a multiple of 8


def save(made: Export, path: Path) -> None:
    """Writes an export, see `load_export`."""
    parts: list[bytes] = []
    head = {
        "quantized": {name: _told(name, one, parts) for name, one in _items(made)},
        "rest": {name: _rest(leaf, parts) for name, leaf in made.rest.items()},
        "size": sum(map(len, parts)),
    }
    body = b"".join([json.dumps(head, allow_nan=True).encode(), b"\n", *parts])
    digest = hashlib.sha256(body).hexdigest().encode() + b"\n"
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(MAGIC + digest + body)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_export(path: str | Path) -> Export:
    """What `Export.save` wrote, without the quantiser that made it.

    The file is a line that names its kind, the SHA-256 of all that follows, a line of
    JSON (names, formats, shapes, dtypes) and the bytes: codes packed without gaps, the
    first bit of a code first, up to a whole byte for each array of weights; then
    scales, offsets and learned levels, and the leaves that are not quantised, little-
    endian. So it is `num_bytes` long, but for its head. It holds no code: formats are
    named by their maker and its arguments, those of your own by their levels.

    Args:
        path: of the file.

    Returns:
        An `Export` whose `params` equal those of the one that was saved, bit by bit.

    Raises:
        ValueError: the file is no export, or not the one that was written: damaged, or
            cut off.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized import export, init, scales, ste
        >>> q = ste(number_formats.symmetric(4), scale=scales.max_abs)
        >>> latent, state = init(q, {"kernel": jnp.array([[0.7, -0.2]])})
        >>> made = export(q, state, latent)
        >>> made.save("weights.export")
        >>> again = load_export("weights.export")
        >>> [round(float(w), 3) for w in again.params(latent)["kernel"][0]]
        [0.7, -0.2]
    """
    whole = Path(path).read_bytes()
    if not whole.startswith(MAGIC):
        raise ValueError(
            f"{path} is no export of this version: expected it to begin with "
            f"{MAGIC.decode().strip()!r}, got {whole[:20]!r}."
        )
    digest, _, body = whole[len(MAGIC) :].partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(
            f"{path} is damaged: it has not the SHA-256 that it was written with. Take "
            "another copy, or export again."
        )
    line, _, data = body.partition(b"\n")
    head = json.loads(line)
    if len(data) != head["size"]:
        raise ValueError(
            f"{path}: expected {head['size']} bytes of data, got {len(data)}."
        )
    source = _Source(memoryview(data))
    quantized = {
        name: _exported(told, source) for name, told in head["quantized"].items()
    }
    rest = {name: _leaf(told, source) for name, told in head["rest"].items()}
    return Export(quantized, rest)


class _Source:
    """Bytes, taken one part after the other."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def take(self, count: int) -> memoryview:
        """The next ones."""
        if count > len(self.data):
            raise ValueError(f"expected {count} bytes more, got {len(self.data)}.")
        found, self.data = self.data[:count], self.data[count:]
        return found

    def array(self, told: dict[str, Any] | None) -> np.ndarray | None:
        """An array, as `_array` wrote it."""
        if told is None:
            return None
        dtype, shape = jnp.dtype(told["dtype"]), tuple(told["shape"])
        found = np.frombuffer(self.take(math.prod(shape) * dtype.itemsize), dtype)
        return found.reshape(shape)


def _items(made: Export) -> list[tuple[str, Exported]]:
    return list(made.quantized.items())


def _told(name: str, made: Exported, parts: list[bytes]) -> dict[str, Any]:
    """The head's entry for a leaf; its bytes are appended to the parts."""
    form = None if made.number_format is None else describe(made.number_format)
    levels = made.levels
    if levels is None and form is None:
        levels = _levels_of(name, made)
    parts.append(packed(made.codes, made.bits))
    return {
        "shape": made.codes.shape,
        "codes": made.codes.dtype.name,
        "bits": made.bits,
        "format": form,
        "dtype": jnp.dtype(made.dtype).name,
        "scale": _array(made.scale, parts),
        "offset": _array(made.offset, parts),
        "levels": _array(levels, parts),
    }


def _levels_of(name: str, made: Exported) -> np.ndarray:
    """By code, of a format that this package did not make."""
    number_format = made.number_format
    if number_format is None or made.bits > 8:
        raise ValueError(
            f"save: {name} has a format of your own, of {made.bits} bits; it is "
            "written as a table of its levels, of at most 8 bits. Take one of "
            "number_formats, or save export.params."
        )
    patterns = np.arange(2**made.bits)
    if made.codes.dtype.kind == "i":
        # Negative codes are counted from the end of the table.
        patterns = np.where(
            patterns < len(patterns) // 2, patterns, patterns - len(patterns)
        )
    wide = jnp.promote_types(made.dtype, jnp.float32)
    codes = jnp.asarray(patterns.astype(made.codes.dtype))
    return np.asarray(number_format.decode(codes, wide))


def _exported(told: dict[str, Any], source: _Source) -> Exported:
    shape, bits = tuple(told["shape"]), told["bits"]
    count = math.prod(shape)
    codes = unpacked(source.take(-(-count * bits // 8)), count, bits, told["codes"])
    scale, offset, levels = (
        source.array(told[name]) for name in ("scale", "offset", "levels")
    )
    form = None if told["format"] is None else described(told["format"])
    dtype = jnp.dtype(told["dtype"])
    return Exported(codes.reshape(shape), scale, offset, levels, form, bits, dtype)


def _rest(leaf: Any, parts: list[bytes]) -> dict[str, Any]:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        told = _array(np.asarray(jax.random.key_data(leaf)), parts)
        return {"key": str(jax.random.key_impl(leaf)), "data": told}
    return {"data": _array(np.asarray(leaf), parts)}


def _leaf(told: dict[str, Any], source: _Source) -> Any:
    data = source.array(told["data"])
    if "key" in told:
        return jax.random.wrap_key_data(jnp.asarray(data), impl=told["key"])
    return data


def _array(given: np.ndarray | None, parts: list[bytes]) -> dict[str, Any] | None:
    if given is None:
        return None
    parts.append(np.ascontiguousarray(given).tobytes())
    return {"shape": given.shape, "dtype": given.dtype.name}


def packed(codes: np.ndarray, bits: int) -> bytes:
    """Codes of so many bits without gaps, the first bit first.

    Example:
        >>> packed(np.array([1, -1, 2], np.int8), 4).hex()
        '1f20'
    """
    flat = codes.reshape(-1).astype(np.int64) & ((1 << bits) - 1)
    places = np.arange(bits - 1, -1, -1)
    return b"".join(
        np.packbits(
            (flat[i : i + _CHUNK, None] >> places & 1).astype(np.uint8)
        ).tobytes()
        for i in range(0, flat.size, _CHUNK)
    )


def unpacked(data: memoryview, count: int, bits: int, dtype: str) -> np.ndarray:
    """The codes again; those of signed dtypes are two's complements."""
    places = np.arange(bits - 1, -1, -1)
    is_signed = np.dtype(dtype).kind == "i"
    found = np.empty(count, dtype)
    for i in range(0, count, _CHUNK):
        number = min(_CHUNK, count - i)
        start, end = i * bits // 8, -(-(i + number) * bits // 8)
        ones = np.unpackbits(
            np.frombuffer(data[start:end], np.uint8), count=number * bits
        )
        own = (ones.reshape(number, bits).astype(np.int64) << places).sum(1)
        if is_signed:
            own = np.where(own >> (bits - 1), own - (1 << bits), own)
        found[i : i + number] = own
    return found
