"""LIBSVM text written here and read back, damaged text, and the real ijcnn1."""

import bz2
import gzip
import lzma
import re

import numpy as np
import pytest

from bilevel.datasets import load_ijcnn1, manifest, read_libsvm

COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def format_libsvm(inputs, labels):
    rows = []
    for row, label in zip(inputs, labels, strict=True):
        entries = [f"{i + 1}:{v!r}" for i, v in enumerate(row.tolist()) if v]
        rows.append(" ".join([f"{label!r}", *entries]) + "\n")
    return "".join(rows).encode()


def sparse(num, width, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((num, width)) * (rng.random((num, width)) < 0.4)
    return inputs.astype(np.float32), rng.standard_normal(num).tolist()


def parse(tmp_path, text, **kwargs):
    path = tmp_path / "data"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_libsvm(path, **kwargs)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_round_trip(tmp_path, suffix):
    inputs, labels = sparse(50, 7)
    path = tmp_path / f"data{suffix}"
    path.write_bytes(COMPRESS[suffix](format_libsvm(inputs, labels)))
    back = read_libsvm(str(path))
    assert back.inputs.dtype == np.float32
    assert back.labels.dtype == np.float64
    np.testing.assert_array_equal(back.inputs, inputs)
    np.testing.assert_array_equal(back.labels, labels)


def test_width(tmp_path):
    assert parse(tmp_path, "1 2:1\n").inputs.tolist() == [[0, 1]]
    assert parse(tmp_path, "1 2:1\n", num_features=3).inputs.tolist() == [[0, 1, 0]]
    assert parse(tmp_path, "1\n2\n").inputs.shape == (2, 0)
    assert parse(tmp_path, "1\n2\n", num_features=2).inputs.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "text",
    ["+1 1:2 3:4\n-1 2:5", "+1\t1:2  3:4 \r\n-1 2:+5.0\r\n", "1 1:2e0 3:4\n-1e0 2:5."],
)
def test_spellings(tmp_path, text):
    data = parse(tmp_path, text)
    assert data.labels.tolist() == [1, -1]
    assert data.inputs.tolist() == [[2, 0, 4], [0, 5, 0]]


def test_row_may_start_where_the_last_one_stopped(tmp_path):
    # Ascending is per row; the first row has no predecessor (np.roll wraps around).
    assert parse(tmp_path, "1 1:1 3:1\n1 3:1\n1 1:1\n1 1:1\n").inputs.shape == (4, 3)
    assert parse(tmp_path, "1 1:4\n").inputs.tolist() == [[4]]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("x 1:2", "the label 'x'"),
        ("1:2 2:3", "the label '1:2'"),
        ("1,2 1:2", "the label '1,2'"),
        ("1_0 1:2", "the label '1_0'"),
        ("1 1", "the token '1'"),
        ("1 1:", "the token '1:'"),
        ("1 :2", "the token ':2'"),
        ("1 1: 2", "the token '1:'"),
        ("1 1:2:3", "the token '1:2:3'"),
        ("1 1.0:2", "the token '1.0:2'"),
        ("1 1:0x2", "the token '1:0x2'"),
        ("1 1:2 3:1_0", "the token '3:1_0'"),
        ("1 1:2 1_0:1", "the token '1_0:1'"),
        ("1 99999999999999999999:2", "the token '99999999999999999999:2'"),
        ("1 qid:3 1:2", "the token 'qid:3'"),
        ("1 1:2 # note", "the token '#'"),
        ("1 1:\xff", "the token '1:\xff'"),
        ("1 1:" + "y" * 100, f"the token '1:{'y' * 38}...'"),
        ("", "a blank line"),
        (" \t\r", "a blank line"),
    ],
)
def test_malformed_lines(tmp_path, line, problem):
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        parse(tmp_path, f"1 1:1\n-1 2:1\n{line}\n1 1:1\n")
    message = str(caught.value)
    assert f"{tmp_path / 'data'}, line 3: expected '<label> <index>:<val" in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1 0:2 1:3", "expected indices from 1 on, got '0:2'"),
        ("1 -3:2", "expected indices from 1 on, got '-3:2'"),
        ("1 2:2 1:3", "expected strictly ascending indices, got '1:3'"),
        ("1 1:2 2:7 2:3", "expected strictly ascending indices, got '2:3'"),
        ("1 1:2 6:3", "expected indices up to num_features=5, got '6:3'"),
        ("1 1:nan", "finite in float32, got '1:nan'"),
        ("1 1:1 2:-inf", "finite in float32, got '2:-inf'"),
        ("1 1:1e39", "finite in float32, got '1:1e+39'"),
        ("nan 1:1", "expected a finite label, got nan"),
        ("-1e999 1:1", "expected a finite label, got -inf"),
    ],
)
def test_rules(tmp_path, line, problem):
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        parse(tmp_path, f"1 1:1\n{line}\n1 2:1\n{line}\n", num_features=5)
    assert f"{tmp_path / 'data'}, line 2: " in str(caught.value)


def test_first_line_is_line_one(tmp_path):
    with pytest.raises(ValueError, match="line 1: expected indices from 1"):
        parse(tmp_path, "1 0:1\n")


@pytest.mark.parametrize("index", [2**50, 2**63 - 1])
def test_absurd_index_without_num_features(tmp_path, index):
    with pytest.raises(ValueError, match="does not fit in memory; pass num_features"):
        parse(tmp_path, f"1 1:1\n1 {index}:1\n")


@pytest.mark.parametrize("text", ["", "\n", " \r\n\n"])
def test_empty(tmp_path, text):
    with pytest.raises(ValueError, match="data: expected LIBSVM text, got an empty"):
        parse(tmp_path, text)


@pytest.mark.parametrize("num_features", [0, -2])
def test_num_features_range(tmp_path, num_features):
    with pytest.raises(ValueError, match=f"at least 1, got {num_features}"):
        parse(tmp_path, "1 1:1\n", num_features=num_features)


def test_num_features_type(tmp_path):
    with pytest.raises(TypeError):
        parse(tmp_path, "1 1:1\n", num_features=2.0)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("cut", [0, 3, 40, -20, -1])
def test_truncated_stream(tmp_path, suffix, cut):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(COMPRESS[suffix](format_libsvm(*sparse(50, 7)))[:cut])
    with pytest.raises(ValueError, match="corrupt or truncated; fetch") as caught:
        read_libsvm(path)
    assert str(path) in str(caught.value)


# -- load_ijcnn1 ----------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path):
    folder = tmp_path / "ijcnn1"
    folder.mkdir()
    for file, num in (("ijcnn1.bz2", 49990), ("ijcnn1.t.bz2", 91701)):
        text = b"-1 2:1\n1 1:0.5\n" * (num // 2) + b"-1 3:1\n" * (num % 2)
        (folder / file).write_bytes(bz2.compress(text))
    return folder


def test_mapping_of_labels(fake, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(fake.parent))
    train, test = load_ijcnn1(verify=False)
    assert train.inputs.shape == (49990, 22)
    assert test.inputs.shape == (91701, 22)
    assert train.labels.dtype == np.int32
    assert train.labels[:4].tolist() == [0, 1, 0, 1]
    assert train.inputs[1, 0] == 0.5


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"1 1:1\n", "expected 91701 examples, got 1; fetch"),
        (b"-1\n" * 7 + b"0\n" * 91694, "line 8: expected the label -1 or 1, got 0"),
        (b"1 23:1\n", "line 1: expected indices up to num_features=22, got '23:1'"),
    ],
)
def test_wrong_content_names_the_file(fake, text, match):
    (fake / "ijcnn1.t.bz2").write_bytes(bz2.compress(text))
    with pytest.raises(ValueError, match=match) as caught:
        load_ijcnn1(fake.parent, verify=False)
    assert str(fake / "ijcnn1.t.bz2") in str(caught.value)


def test_a_version_of_your_own(fake):
    with pytest.raises(manifest.DamagedFileError) as caught:
        load_ijcnn1(fake.parent)
    message = str(caught.value)
    assert "'ijcnn1', compared with the original files: damaged files in" in message
    for file in ("ijcnn1.bz2", "ijcnn1.t.bz2"):
        assert f"{file}: expected sha256 " in message
    manifest.write(fake, ["ijcnn1.bz2"])
    match = r"ijcnn1/SHA256SUMS has no checksum of ijcnn1\.t\.bz2\n"
    with pytest.raises(manifest.DamagedFileError, match=match):
        load_ijcnn1(fake.parent)
    manifest.write(fake)
    assert load_ijcnn1(fake.parent).test.inputs.shape == (91701, 22)


def test_missing_files_are_named(fake):
    (fake / "ijcnn1.bz2").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files .*: ijcnn1\.bz2\."):
        load_ijcnn1(fake.parent)


def test_real_ijcnn1(data_dir):
    train, test = load_ijcnn1(data_dir)
    assert train.inputs.shape == (49990, 22)
    assert test.inputs.shape == (91701, 22)
    assert np.bincount(train.labels).tolist() == [45137, 4853]
    assert np.bincount(test.labels).tolist() == [82989, 8712]
    # Number of entries that are listed and not zero.
    assert np.count_nonzero(train.inputs) == 649869
    assert np.count_nonzero(test.inputs) == 1192101
    first = [*[0] * 5, 1, *[0] * 4, -0.731854, 0.173431, 0, 0.00027, 0.011684]
    first += [-0.011052, 0.024452, 0.008337, 0.001324, 0.025544, -0.040728, -0.00081]
    np.testing.assert_array_equal(train.inputs[0], np.array(first, np.float32))
    for part in (train, test):
        one_hot = part.inputs[:, :10]
        assert set(np.unique(one_hot)) == {0, 1}
        np.testing.assert_array_equal(one_hot.sum(axis=1), 1)
