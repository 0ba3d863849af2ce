"""IDX files written here and read back, damaged files, and the real MNIST."""

import bz2
import gzip
import re
import struct
import zlib

import numpy as np
import pytest

from bilevel.datasets import load_fashion_mnist, load_mnist, manifest, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def pack_idx(array):
    code = CODES[array.dtype.newbyteorder("=").str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def extremes(kind, shape):
    dtype = np.dtype(kind)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    values = np.array([limits.min, limits.max, 0, 1, 2, 3], dtype)
    return np.resize(values, shape)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("shape", [(6,), (1,), (0,), (2, 3), (5, 0, 2), (2, 3, 4, 5)])
def test_round_trip(tmp_path, kind, shape):
    array = extremes(kind, shape)
    (tmp_path / "a").write_bytes(pack_idx(array))
    back = read_idx(tmp_path / "a")
    assert back.dtype == np.dtype(kind)
    assert back.dtype.isnative
    assert back.flags.writeable
    assert back.shape == shape
    np.testing.assert_array_equal(back, array)


def test_special_floats(tmp_path):
    array = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    (tmp_path / "a").write_bytes(pack_idx(array))
    assert read_idx(tmp_path / "a").tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)]
)
def test_compressed(tmp_path, suffix, compress):
    array = extremes("i2", (3, 4))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compress(pack_idx(array)))
    np.testing.assert_array_equal(read_idx(str(path)), array)


def test_bytes_of_the_specification(tmp_path):
    # The byte order of the entries, spelled out without the writer above.
    data = bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x01, 0x02, 0xFF, 0xFE])
    (tmp_path / "a").write_bytes(data)
    assert read_idx(tmp_path / "a").tolist() == [[0x0102, -2]]


def assert_damaged(path, data, match):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_truncated_at_every_byte(tmp_path):
    whole = pack_idx(extremes("f4", (2, 3)))
    for length in range(len(whole)):
        match = r"not an IDX file" if length < 4 else r"is truncated; fetch it again"
        assert_damaged(tmp_path / "a", whole[:length], match)


def test_truncated_inside_gzip(tmp_path):
    # The compressed stream is whole; what was compressed is not.
    data = gzip.compress(pack_idx(extremes("u1", (6,)))[:-1])
    expected = re.escape("14 bytes (after decompression) for uint8 [6], got 13")
    assert_damaged(tmp_path / "a.gz", data, expected)


@pytest.mark.parametrize("cut", [0, 1, 5, 17, -8, -1])
def test_truncated_gzip(tmp_path, cut):
    data = gzip.compress(pack_idx(extremes("u1", (600,))))[:cut]
    assert_damaged(tmp_path / "a.gz", data, "complete gzip stream.*fetch it again")


def test_trailing_bytes(tmp_path):
    data = pack_idx(extremes("i4", (2,))) + b"\0"
    match = r"expected 16 bytes .* int32 \[2\], got 17: bytes trail the array"
    assert_damaged(tmp_path / "a", data, match)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_flipped_magic(tmp_path, position):
    data = bytearray(pack_idx(extremes("u1", (6,))))
    data[position] ^= 0x80
    came = bytes(data[:4]).hex(" ")
    match = f"expected an IDX header.*08, 09, 0b, 0c, 0d, 0e.*got {came}"
    assert_damaged(tmp_path / "a", data, match)


@pytest.mark.parametrize("rank", [0, 65, 255])
def test_impossible_rank(tmp_path, rank):
    data = bytes([0, 0, 8, rank]) + bytes(2000)
    assert_damaged(tmp_path / "a", data, f"rank .* from 1 to 64, got {rank}")


def test_truncated_header(tmp_path):
    match = "expected 16 bytes of header for rank 3, got 9 bytes in all"
    assert_damaged(tmp_path / "a", bytes([0, 0, 8, 3, 0, 0, 0, 1, 0]), match)


def test_huge_sizes_allocate_nothing(tmp_path):
    data = struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3)
    assert_damaged(tmp_path / "a", data, "is truncated")


def test_empty_file_and_wrong_format(tmp_path):
    assert_damaged(tmp_path / "a", b"", "got an empty file")
    # A gzip file whose name lost its suffix.
    data = gzip.compress(pack_idx(extremes("u1", (6,))))
    assert_damaged(tmp_path / "b", data, "expected an IDX header.*got 1f 8b 08")


# -- load_mnist on files written here; only the file under test is damaged ------------


TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def write(path, array):
    path.write_bytes(gzip.compress(pack_idx(array), compresslevel=1))


@pytest.fixture
def fake(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, num in (("train", 60000), ("t10k", 10000)):
        images = np.zeros((num, 28, 28), np.uint8)
        images[1, 0, 1] = 255
        images[1, 1, 0] = 51
        write(folder / f"{part}-images-idx3-ubyte.gz", images)
        labels = np.arange(num, dtype=np.uint8) % 10
        write(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def test_values_and_types(fake, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(fake.parent))
    parts = load_mnist(verify=False)
    for part, num in zip(parts, (60000, 10000), strict=True):
        assert part.inputs.shape == (num, 784)
        assert part.inputs.dtype == np.float32
        assert part.labels.dtype == np.int32
        assert part.labels[:11].tolist() == [*range(10), 0]
        assert part.inputs[1, 1] == 1.0
        assert part.inputs[1, 28] == np.float32(0.2)
        assert np.count_nonzero(part.inputs) == 2


def test_other_folder_name(fake):
    fake.rename(fake.parent / "fashion_mnist")
    splits = load_fashion_mnist(fake.parent, verify=False)
    assert splits.test.labels.shape == (10000,)


@pytest.mark.parametrize(
    ("file", "array", "expected", "got"),
    [
        (TRAIN_IMAGES, np.zeros((3, 28, 28), "u1"), "[60000, 28, 28]", "[3, 28, 28]"),
        (TEST_IMAGES, np.zeros((10000, 7), "u1"), "[10000, 28, 28]", "[10000, 7]"),
        (TRAIN_LABELS, np.zeros(59999, "u1"), "[60000]", "uint8 [59999]"),
        (TEST_LABELS, np.zeros(10000, "i1"), "uint8 [10000]", "int8 [10000]"),
        (TEST_LABELS, np.full(10000, 10, "u1"), "labels from 0 to 9", "10 at position"),
    ],
)
def test_wrong_content_names_the_file(fake, file, array, expected, got):
    write(fake / file, array)
    match = f"{re.escape(expected)}.*got.*{re.escape(got)}"
    with pytest.raises(ValueError, match=match) as caught:
        load_mnist(fake.parent, verify=False)
    assert str(fake / file) in str(caught.value)


def test_a_version_of_your_own(fake):
    with pytest.raises(manifest.DamagedFileError) as caught:
        load_mnist(fake.parent)
    message = str(caught.value)
    assert "'mnist', compared with the original files: damaged files in" in message
    for file in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS):
        assert f"{file}: expected sha256 " in message
    manifest.write(fake)
    assert load_mnist(fake.parent).test.labels.shape == (10000,)
    # A list decides for data sets of which nothing is known, too.
    fake.rename(fake.parent / "my_digits")
    file = fake.parent / "my_digits" / TEST_LABELS
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(manifest.DamagedFileError) as caught:
        load_mnist(fake.parent, "my_digits")
    assert caught.value.names == (TEST_LABELS,)
    assert f"({len(whole) - 1} bytes)" in str(caught.value)
    (fake.parent / "my_digits" / manifest.NAME).unlink()
    with pytest.raises(ValueError, match="expected a complete gzip stream"):
        load_mnist(fake.parent, "my_digits")


def test_missing_files_are_named(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / TRAIN_IMAGES).touch()
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(tmp_path)
    for file in (TRAIN_LABELS, TEST_IMAGES, TEST_LABELS):
        assert file in str(caught.value)
    assert TRAIN_IMAGES not in str(caught.value)


# -- the real files -------------------------------------------------------------------


def first_image_crc(part):
    return zlib.crc32(np.round(part.inputs[0] * 255).astype(np.uint8).tobytes())


def check_real(part, first_labels, crc, mean):
    assert part.inputs.dtype == np.float32
    assert part.labels.dtype == np.int32
    assert part.inputs.min() == 0.0
    assert part.inputs.max() == 1.0
    assert part.labels[:5].tolist() == first_labels
    assert first_image_crc(part) == crc
    # Float64 sum of correctly rounded float32 quotients: good to about 1e-8.
    assert part.inputs.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-7)


def test_real_mnist(data_dir):
    train, test = load_mnist(data_dir)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(train.labels).tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(test.labels).tolist() == counts
    # The sums of all grey levels over 255 and the number of pixels.
    mean = 1567298545 / 255 / 60000 / 784
    check_real(train, [5, 0, 4, 1, 9], 2427004754, mean)
    mean = 264923200 / 255 / 10000 / 784
    check_real(test, [7, 2, 1, 0, 4], 2125712646, mean)


@pytest.mark.parametrize("load", [load_mnist, load_fashion_mnist])
def test_a_changed_real_file(data_dir, tmp_path, load):
    name = load.__name__.removeprefix("load_")
    folder = tmp_path / name
    folder.mkdir()
    for file in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES):
        (folder / file).symlink_to(data_dir / name / file)
    data = bytearray((data_dir / name / TEST_LABELS).read_bytes())
    data[4] ^= 1  # the time of compression: the labels are the same
    (folder / TEST_LABELS).write_bytes(data)
    with pytest.raises(manifest.DamagedFileError) as caught:
        load(tmp_path)
    assert caught.value.names == (TEST_LABELS,)
    assert load(tmp_path, verify=False).test.labels.shape == (10000,)


def test_real_fashion_mnist(data_dir):
    train, test = load_fashion_mnist(data_dir)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    mean = 3431114169 / 255 / 60000 / 784
    check_real(train, [9, 0, 0, 3, 0], 4067475125, mean)
    mean = 573469082 / 255 / 10000 / 784
    check_real(test, [9, 2, 1, 1, 6], 1384319072, mean)
