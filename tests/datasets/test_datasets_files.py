"""Finding folders, and reading compressed files, whatever is wrong with them."""

import bz2
import gzip
import lzma

import pytest

from bilevel.datasets import files
from bilevel.datasets.files import find, read_bytes

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
CONTENT = bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("BILEVEL_DATA", raising=False)


def make_set(root, *files):
    (root / "letters").mkdir(parents=True)
    for file in files:
        (root / "letters" / file).write_bytes(b"")
    return root


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_find_by_argument(tmp_path, kind):
    make_set(tmp_path, "a", "b")
    assert find(kind(tmp_path), "letters", ["a", "b"]) == tmp_path / "letters"
    assert find(kind(tmp_path), "letters") == tmp_path / "letters"


def test_find_by_environment_and_the_argument_wins(tmp_path, monkeypatch):
    variable, argument = (make_set(tmp_path / name) for name in ("one", "two"))
    monkeypatch.setenv("BILEVEL_DATA", str(variable))
    assert find(None, "letters") == variable / "letters"
    assert find(argument, "letters") == argument / "letters"


def test_find_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(make_set(tmp_path)))
    assert find("~", "letters") == tmp_path / "letters"


@pytest.mark.parametrize("variable", [None, ""])
def test_find_without_any_folder(monkeypatch, variable):
    if variable is not None:
        monkeypatch.setenv("BILEVEL_DATA", variable)
    with pytest.raises(FileNotFoundError) as caught:
        find(None, "letters", ["a", "b"])
    message = str(caught.value)
    assert "'letters': no data_dir was given and BILEVEL_DATA is not set" in message
    assert "Needed in a folder named 'letters': a, b." in message
    assert "--data_dir=..." in message


def test_find_without_the_set(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        find(tmp_path, "letters", ["a", "b"])
    message = str(caught.value)
    assert f"there is no folder {tmp_path / 'letters'}" in message
    assert "a, b" in message
    assert "--data_dir=..." in message
    assert "BILEVEL_DATA" in message


def test_find_lists_exactly_the_missing_files(tmp_path):
    make_set(tmp_path, "present")
    with pytest.raises(FileNotFoundError) as caught:
        find(tmp_path, "letters", ["absent1", "present", "absent2"])
    message = str(caught.value)
    assert "2 of 3 files are missing" in message
    assert f"{tmp_path / 'letters'}: absent1, absent2." in message
    assert "present" not in message
    assert "BILEVEL_DATA" in message


def test_read_plain(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert read_bytes(tmp_path / "a.bin") == CONTENT
    assert read_bytes(str(tmp_path / "a.bin")) == CONTENT


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("content", [b"", CONTENT])
def test_read_compressed(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    assert read_bytes(path) == content


@pytest.mark.parametrize("suffix", COMPRESS)
def test_several_streams_and_padding(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    pack = COMPRESS[suffix]
    path.write_bytes(pack(CONTENT) + bytes(4) + pack(b"end") + bytes(8))
    assert read_bytes(path) == CONTENT + b"end"


def assert_corrupt(path):
    with pytest.raises(ValueError, match="fetch it again") as caught:
        read_bytes(path)
    assert str(path) in str(caught.value)
    assert "expected a complete" in str(caught.value)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_truncated_anywhere(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    whole = COMPRESS[suffix](CONTENT)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_corrupt(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_second_stream_truncated_anywhere(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    first, second = COMPRESS[suffix](CONTENT), COMPRESS[suffix](b"end")
    for length in range(1, len(second)):
        path.write_bytes(first + second[:length])
        assert_corrupt(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damage_in_a_second_stream_is_not_dropped(tmp_path, suffix):
    # gzip.open notices this; bz2.open and lzma.open return the first stream only.
    path = tmp_path / f"a{suffix}"
    second = bytearray(COMPRESS[suffix](CONTENT))
    second[0] ^= 1
    path.write_bytes(COMPRESS[suffix](CONTENT) + second)
    assert_corrupt(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_flipped_content(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    whole = bytearray(COMPRESS[suffix](CONTENT))
    whole[len(whole) // 2] ^= 0x10
    path.write_bytes(whole)
    assert_corrupt(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_not_compressed_at_all(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"plain text\n")
    assert_corrupt(path)


def test_empty_file_says_so(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="gzip stream, got an empty file"):
        read_bytes(tmp_path / "a.gz")


def test_missing_file_stays_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.bz2"):
        read_bytes(tmp_path / "absent.bz2")


def test_replace_leaves_the_old_file_where_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def make(temporary):
        temporary.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        files.replace(path, make)
    assert path.read_text() == "old"
    files.replace_text(path, "new")
    assert path.read_text() == "new"
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_replace_follows_no_link(tmp_path):
    """A received folder may hold links in place of both files."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("a", ".a.tmp"):
        (tmp_path / name).symlink_to(outside)
    files.replace_text(tmp_path / "a", "new")
    assert outside.read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_text() == "new"
