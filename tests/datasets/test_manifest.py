"""Lists of checksums: read, written, damaged; fingerprints of arrays."""

import hashlib
import os
import shlex
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest

from bilevel.datasets import known, manifest
from bilevel.datasets.manifest import DamagedFileError

# sha256sum of the bytes "abc", as FIPS 180-2 gives it.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

NAMES = (
    "a.txt",
    "with space",
    "# hash",
    "a# b",
    "sub/folder/c.bin",
    "sub/two  spaces",
    "back\\slash",
    "new\nline",
    "carriage\rreturn",
    "umläut",
    "line\u2028separator",
    "*star",
    "zero",
)


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() if name != "zero" else b"")
    return tmp_path / "data"


@pytest.fixture
def small(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    (tmp_path / "b.txt").write_bytes(b"")
    manifest.write(tmp_path)
    return tmp_path


def sha256sum(folder, *arguments):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    done = subprocess.run(
        ["sha256sum", *arguments], cwd=folder, capture_output=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_known_digests(small):
    assert manifest.file_sha256(small / "a.txt") == ABC
    assert manifest.read(small) == {"a.txt": ABC, "b.txt": EMPTY}
    body = f"{ABC}  a.txt\n{EMPTY}  b.txt\n"
    head = hashlib.sha256(body.encode()).hexdigest()
    assert (small / "SHA256SUMS").read_text() == f"# {head}\n{body}"


def test_large_file(tmp_path):
    data = bytes(range(256)) * 12289  # three chunks, the last one not full
    (tmp_path / "a").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert manifest.file_sha256(tmp_path / "a") == expected


def test_round_trip_of_odd_names(folder):
    written = manifest.write(folder)
    assert sorted(written) == sorted(NAMES)
    assert manifest.read(folder) == written
    manifest.check(folder)
    assert not list(folder.glob(".*"))  # nothing is left of the writing


def test_sha256sum_accepts_ours(folder):
    manifest.write(folder)
    options = ("--check", "--strict", "--quiet", manifest.NAME)
    assert sha256sum(folder, *options) == (0, b"", b"")
    (folder / "with space").write_bytes(b"")
    code, out, _ = sha256sum(folder, *options)
    assert (code, out) == (1, b"with space: FAILED\n")


@pytest.mark.parametrize("mode", ["--text", "--binary"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_list_of_sha256sum_is_read(folder, mode, prefix):
    names = [f"{prefix}{name}" for name in NAMES]
    code, out, _ = sha256sum(folder, mode, "--", *names)
    assert code == 0
    (folder / manifest.NAME).write_bytes(out)
    assert sorted(manifest.read(folder)) == sorted(NAMES)
    manifest.check(folder)


def test_spellings_that_sha256sum_accepts(tmp_path):
    (tmp_path / "a b").write_bytes(b"abc")
    text = f"{ABC.upper()} *a b\r\n\n# a comment\n{ABC}  ./a b"
    (tmp_path / manifest.NAME).write_text(text, newline="")
    assert manifest.read(tmp_path) == {"a b": ABC}
    code, out, _ = sha256sum(tmp_path, "--check", "--strict", manifest.NAME)
    assert (code, out) == (0, b"a b: OK\n./a b: OK\n")


def test_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / name).write_bytes(b"abc")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert manifest.write(tmp_path) == {name: ABC}
    assert b"caf\xe9" in (tmp_path / manifest.NAME).read_bytes()
    manifest.check(tmp_path)


def test_what_is_listed(tmp_path):
    for name in (".hidden", ".git/config", "sub/.cache/x", "sub/a", "sub/SHA256SUMS"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"abc")
    assert manifest.write(tmp_path) == {"sub/SHA256SUMS": ABC, "sub/a": ABC}
    # A list is not part of itself when it is written anew.
    assert manifest.write(tmp_path) == {"sub/SHA256SUMS": ABC, "sub/a": ABC}
    assert manifest.write(tmp_path, [".hidden"]) == {".hidden": ABC}
    assert manifest.read(tmp_path) == {".hidden": ABC}


def test_every_flipped_bit_of_the_list_is_blamed_on_the_list(small):
    path = small / manifest.NAME
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(DamagedFileError) as caught:
                manifest.check(small)
            assert caught.value.names == (manifest.NAME,)
            assert str(path) in str(caught.value)


def test_a_list_cut_short_at_any_byte(small):
    path = small / manifest.NAME
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError) as caught:
            manifest.check(small)
        assert caught.value.names == (manifest.NAME,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        (f"{ABC}  a.txt\nhello\n", "line 2 is not '<sha256>  <file name>'"),
        (f"{ABC[:-1]}  a.txt\n", "line 1 is not '<sha256>  <file name>'"),
        (f"{ABC} a.txt\n", "line 1 is not '<sha256>  <file name>'"),
        (f"{ABC}  \n", "line 1 is not '<sha256>  <file name>'"),
        (f"{ABC}  a\n{EMPTY}  ./a\n", "it has two checksums of a"),
        (f"# mine\n{ABC}  a\n", "its first line is not the sha256 of the others"),
    ],
)
def test_what_is_no_list(tmp_path, text, why):
    path = tmp_path / manifest.NAME
    path.write_text(text)
    with pytest.raises(DamagedFileError) as caught:
        manifest.read(tmp_path)
    assert str(caught.value) == f"{path} is no list of checksums: {why}"


def test_no_list(tmp_path):
    for function in (manifest.read, manifest.check):
        with pytest.raises(FileNotFoundError):
            function(tmp_path)


def test_all_damaged_files_are_named(folder):
    digests = manifest.write(folder)
    (folder / "a.txt").write_bytes(b"abc")
    (folder / "sub/folder/c.bin").write_bytes(b"sub/fold")
    (folder / "with space").unlink()
    (folder / "zero").unlink()
    (folder / "zero").mkdir()
    with pytest.raises(DamagedFileError) as caught:
        manifest.check(folder)
    cut = hashlib.sha256(b"sub/fold").hexdigest()
    expected, cut_expected = digests["a.txt"], digests["sub/folder/c.bin"]
    assert str(caught.value) == (
        f"damaged files in {folder}:\n"
        f"  a.txt: expected sha256 {expected}, got {ABC} (3 bytes)\n"
        f"  sub/folder/c.bin: expected sha256 {cut_expected}, got {cut} (8 bytes)\n"
        "  with space: is missing\n"
        "  zero: is missing"
    )
    names = ("a.txt", "sub/folder/c.bin", "with space", "zero")
    assert caught.value.names == names


def test_every_flipped_bit_of_a_file_is_blamed_on_it(small):
    for bit in range(24):
        data = bytearray(b"abc")
        data[bit // 8] ^= 1 << bit % 8
        (small / "a.txt").write_bytes(data)
        with pytest.raises(DamagedFileError) as caught:
            manifest.check(small)
        assert caught.value.names == ("a.txt",)


# -- verify ---------------------------------------------------------------------------


def test_verify_without_list_and_record(small):
    (small / manifest.NAME).unlink()
    manifest.verify(small, "letters", ["a.txt", "not there"])


def test_verify_by_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "SHA256", {"letters": {"a.txt": ABC}})
    (tmp_path / "b.txt").write_bytes(b"b")  # unknown: not verified
    (tmp_path / "a.txt").write_bytes(b"abc")
    manifest.verify(tmp_path, "letters", ["a.txt", "b.txt"])
    (tmp_path / "a.txt").write_bytes(b"")
    manifest.verify(tmp_path, "letters", ["b.txt"])
    manifest.verify(tmp_path, "others", ["a.txt", "b.txt"])
    with pytest.raises(DamagedFileError) as caught:
        manifest.verify(tmp_path, "letters", ["a.txt", "b.txt"])
    assert caught.value.names == ("a.txt",)
    assert str(caught.value) == (
        "Data set 'letters', compared with the original files: damaged files in"
        f" {tmp_path}:\n  a.txt: expected sha256 {ABC}, got {EMPTY} (0 bytes)\n"
        "Fetch the files again. If they are meant to be as they are, make them a"
        f" version of their own: cd {tmp_path} && sha256sum a.txt b.txt > SHA256SUMS."
        " With verify=False they are read without verification."
    )


def test_a_list_overrules_the_record(small, monkeypatch):
    monkeypatch.setattr(manifest, "SHA256", {"letters": {"a.txt": EMPTY}})
    manifest.verify(small, "letters", ["a.txt", "b.txt"])
    (small / "b.txt").write_bytes(b"b")
    manifest.verify(small, "letters", ["a.txt"])  # the others are not read
    with pytest.raises(DamagedFileError, match="the list SHA256SUMS in its folder: "):
        manifest.verify(small, "letters", ["a.txt", "b.txt"])


def test_a_file_that_is_not_listed(small):
    (small / "c d.txt").write_bytes(b"")
    with pytest.raises(DamagedFileError) as caught:
        manifest.verify(small, "letters", ["c d.txt", "a.txt"])
    message = str(caught.value)
    assert f"{small / manifest.NAME} has no checksum of c d.txt\n" in message
    assert caught.value.names == ("c d.txt",)


def test_a_damaged_list_is_named(small):
    (small / manifest.NAME).write_bytes(b"")
    with pytest.raises(DamagedFileError, match="no list of checksums: it is empt") as e:
        manifest.verify(small, "letters", ["a.txt"])
    assert e.value.names == (manifest.NAME,)


def test_the_advice_works(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "a b").write_bytes(b"abc")
    (folder / manifest.NAME).write_text(f"{EMPTY}  a b\n")
    with pytest.raises(DamagedFileError) as caught:
        manifest.verify(folder, "letters", ["a b"])
    command = str(caught.value).partition("own: ")[2].partition(". With")[0]
    assert shlex.split(command)[:2] == ["cd", str(folder)]
    subprocess.run(["sh", "-c", command], check=True)
    manifest.verify(folder, "letters", ["a b"])


def test_the_record_is_of_the_real_files(data_dir):
    assert {len(one) for names in known.SHA256.values() for one in names.values()} == {
        64
    }
    for name, digests in known.SHA256.items():
        manifest.check(data_dir / name, digests)


# -- arrays ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=">i4"),
        np.array(True),
        np.zeros((0, 3), np.float64),
        np.array(["a", "bc"]),
        np.arange(3).astype(ml_dtypes.bfloat16),
        np.arange(4).astype(ml_dtypes.int4),
        np.array([1 + 2j, np.nan]),
    ],
)
def test_fingerprint_of_arrays(array):
    expected = hashlib.sha256(array.tobytes()).hexdigest()
    assert manifest.fingerprint(array) == {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha256": expected,
    }


def test_row_major_order_is_what_counts():
    array = np.arange(12.0).reshape(3, 4)
    assert manifest.sha256(np.asfortranarray(array)) == manifest.sha256(array)
    assert manifest.sha256(array[:, ::2]) == manifest.sha256(array[:, ::2].copy())
    assert manifest.sha256(array.T) != manifest.sha256(array)
    assert manifest.sha256(np.array([0.0])) != manifest.sha256(np.array([-0.0]))


def test_objects_have_no_fingerprint():
    with pytest.raises(TypeError):
        manifest.fingerprint(np.array([object()]))


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/passwd"])
def test_a_list_names_no_file_outside_of_its_folder(tmp_path, name):
    """A folder that somebody sent must not have others read."""
    line = f"{'0' * 64}  {name}\n"
    (tmp_path / "SHA256SUMS").write_text(line)
    with pytest.raises(DamagedFileError, match="is not in the folder"):
        manifest.check(tmp_path)
