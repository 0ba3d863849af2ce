"""The record of an environment, differences between two, and the check of one."""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys

import jax
import pytest

from bilevel.experiments import environment, fingerprint, host_numerics, versions
from bilevel.experiments.environment import EnvironmentDrift, EnvironmentMismatch

NUMPY = importlib.metadata.version("numpy")
DOWNGRADED = f"numpy==1.0\njax=={importlib.metadata.version('jax')}\nnot-there==3\n"


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "requirements.lock"
    path.write_text(DOWNGRADED)
    return path


@pytest.fixture(scope="module")
def record():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
        patch.setenv("JAX_PASSWORD", "hunter2-hunter2")
        patch.setenv("OMP_NUM_THREADS", "7")
        patch.setenv("OPENBLAS_CORETYPE", "NEHALEM")  # read when NumPy is imported
        patch.setenv("NPY_DISABLE_CPU_FEATURES", "X86_V3")
        patch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_ibt=off")
        patch.setenv("MKL_CBWR", "COMPATIBLE")
        patch.setenv("OMP_SECRET_KEY", "hunter2-hunter2")
        patch.setenv("JAX_LOG_COMPILES", "0")
        return environment.record()


# -- the record -----------------------------------------------------------------------


def test_no_variable_but_those_of_the_list(record):
    assert "hunter2" not in json.dumps(record)
    assert record["variables"]["OMP_NUM_THREADS"] == "7"
    assert record["variables"]["JAX_LOG_COMPILES"] == "0"
    listed = set(environment._VARIABLES)
    listed |= {name.upper() for name in jax.config.values}
    listed |= {*host_numerics.VARIABLES}
    rest = [one for one in record["variables"] if one not in listed]
    assert all(one.startswith(host_numerics.PREFIXES) for one in rest)
    assert not {"PATH", "HOME", "JAX_PASSWORD", "OMP_SECRET_KEY"} & listed


def test_what_numpy_computes_with_is_recorded(record):
    variables = record["variables"]
    assert variables["OPENBLAS_CORETYPE"] == "NEHALEM"
    assert variables["NPY_DISABLE_CPU_FEATURES"] == "X86_V3"
    assert variables["GLIBC_TUNABLES"] == "glibc.cpu.x86_ibt=off"
    assert variables["MKL_CBWR"] == "COMPATIBLE"
    assert record["numpy"].keys() == {"simd", "blas", "libraries", "bits"}
    assert len(record["numpy"]["bits"]) == 12
    is_random = sys.flags.hash_randomization
    assert record["str_hash"] == ("random" if is_random else "fixed")


def test_what_is_recorded(record):
    assert json.loads(json.dumps(record)) == record
    assert record["python"] == platform.python_version()
    assert record["packages"] == versions.installed()
    assert record["jax"]["jax_enable_x64"] is True
    assert record["jax"]["jax_numpy_rank_promotion"] == "raise"
    assert record["lock"] is None
    assert record["random_numbers"] == "as expected"
    assert record["backend"] == jax.default_backend()
    assert record["devices"] == [one.device_kind for one in jax.devices()]
    assert record["processes"] == 1
    assert record["cores"] == environment.num_cores() >= 1
    assert environment.difference(record, record) == []


def test_flags_are_those_that_hold_now():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("strict"):
        flags = environment._jax_flags()
    assert flags["jax_enable_x64"] is False
    assert flags["jax_numpy_dtype_promotion"] == "strict"


def test_other_random_numbers_are_recorded(monkeypatch, lock):
    golden = fingerprint.read()
    bits = golden.items["prng_bits"]
    changed = {"prng_bits": bits._replace(values=(0.0, *bits.values[1:]))}
    other = golden._replace(items=golden.items | changed)
    monkeypatch.setattr(fingerprint, "read", lambda: other)
    found = environment.record(lock)
    assert found["random_numbers"] == [
        "prng_bits: 1 of 64 values differ, the first 4070199207, expected 0"
    ]
    assert found["lock"] == {
        "file": "requirements.lock",
        "sha256": hashlib.sha256(DOWNGRADED.encode()).hexdigest(),
        "mismatches": [f"numpy: locked 1.0, running {NUMPY}"],
        "missing": ["not-there"],
    }


def test_record_with_a_damaged_lock(lock):
    lock.write_text("numpy\n")
    with pytest.raises(versions.LockError, match="line 1"):
        environment.record(lock)


@pytest.mark.parametrize(
    ("value", "expected"), [("1", 1), ("3", 3), ("", None), ("0", None), ("x", None)]
)
def test_num_threads(monkeypatch, value, expected):
    monkeypatch.setenv("NPROC", value)
    assert environment.num_threads() == (expected or environment.num_cores())


def test_cpu():

    if os.path.exists("/proc/cpuinfo") and platform.machine() == "x86_64":
        assert environment.cpu_model()


# -- differences ----------------------------------------------------------------------


def test_difference_names_the_likeliest_cause_first():
    before = {
        "python": "3.11.7",
        "cpu": "a",
        "threads": 2,
        "variables": {"XLA_FLAGS": "--x", "OMP_NUM_THREADS": "2"},
        "packages": {"jax": "0.10.2", "zlib": "1", "gone": "1"},
        "jax": {"jax_enable_x64": False, "jax_threefry_partitionable": True},
        "devices": ["cpu"],
        "random_numbers": "as expected",
        "lock": {"sha256": "a"},
        "platform": "Linux-5",
        "cores": 4,
    }
    now = {
        "python": "3.13.0",
        "cpu": "b",
        "threads": 1,
        "variables": {"XLA_FLAGS": "--y", "NPROC": "1", "OMP_NUM_THREADS": "2"},
        "packages": {"jax": "0.12.0", "zlib": "1", "new": "2"},
        "jax": {"jax_enable_x64": False, "jax_threefry_partitionable": False},
        "devices": ["cpu", "cpu"],
        "random_numbers": ["split: 1 of 8 values differ"],
        "lock": {"sha256": "b"},
        "platform": "Linux-6",
        "cores": 8,
    }
    assert environment.difference(before, now) == [
        "threads: 2 -> 1",
        "package jax: 0.10.2 -> 0.12.0",
        "package gone: 1 -> None",
        "package new: None -> 2",
        "flag jax_threefry_partitionable: True -> False",
        "variable NPROC: None -> 1",
        "variable XLA_FLAGS: --x -> --y",
        "devices: ['cpu'] -> ['cpu', 'cpu']",
        "random_numbers: as expected -> ['split: 1 of 8 values differ']",
        "cpu: a -> b",
        "python: 3.11.7 -> 3.13.0",
    ]
    assert environment.difference(before, before) == []
    assert environment.difference(before, now, ["cores"]) == ["cores: 4 -> 8"]


def test_difference_from_a_record_that_lacks_an_entry():
    assert environment.difference({}, {"threads": 1, "packages": {}}) == [
        "threads: None -> 1",
        "packages: None -> {}",
    ]


# -- the lock file --------------------------------------------------------------------


def test_find_lock(tmp_path, lock):
    program = tmp_path / "examples" / "deep" / "x.py"
    program.parent.mkdir(parents=True)
    assert environment.find_lock(program) == lock
    nearer = tmp_path / "examples" / "requirements.lock"
    nearer.touch()
    assert environment.find_lock(program) == nearer
    (tmp_path / "link.py").symlink_to(program)
    assert environment.find_lock(tmp_path / "link.py") == nearer
    assert environment.find_lock(tmp_path / "y.py") == lock


def test_find_lock_from_the_working_directory(tmp_path, lock, monkeypatch):
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    assert environment.find_lock("x.py") == lock


def test_no_lock():
    assert environment.find_lock("/x.py") is None


# -- the check ------------------------------------------------------------------------


@pytest.fixture
def numbers(monkeypatch):
    """The problems that the fingerprint finds; computing it takes seconds."""
    found = []
    monkeypatch.setattr(fingerprint, "problems", lambda golden: list(found))
    return found


def test_a_downgraded_package_is_named(lock, numbers):
    with pytest.warns(EnvironmentDrift) as caught:
        report = environment.check(lock)
    (warning,) = caught
    message = str(warning.message)
    assert "packages differ from requirements.lock ('python" in message
    assert message.endswith(
        " -m pip install -r requirements.lock' installs it):\n"
        f"  numpy: locked 1.0, running {NUMPY}"
    )
    assert warning.filename == __file__
    assert report == ([f"numpy: locked 1.0, running {NUMPY}"], ["not-there"], [])


def test_strict_refuses_other_packages(lock, numbers):
    with pytest.raises(EnvironmentMismatch) as caught:
        environment.check(lock, strict=True)
    assert str(caught.value) == (
        f"the environment has changed:\n  numpy: locked 1.0, running {NUMPY}"
    )


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_not_installed_is_no_drift(lock, numbers, strict):
    lock.write_text(f"numpy=={NUMPY}\nnot-there==3\n")
    report = environment.check(lock, strict=strict)
    assert report == ([], ["not-there"], [])


def test_problems_fail_and_name_what_moved(lock, numbers):
    lock.write_text(f"numpy=={NUMPY}\n")
    numbers += ["flag jax_x is 1, was 0", "numbers: split: 1 of 8 values differ"]
    with pytest.raises(EnvironmentMismatch) as caught:
        environment.check(lock)
    assert str(caught.value) == (
        "the environment has changed:\n  flag jax_x is 1, was 0\n"
        "  numbers: split: 1 of 8 values differ"
    )
    # A test that runs under pytest fails rather than breaks.
    assert isinstance(caught.value, AssertionError)


def test_a_flag_that_moved_is_named(lock):
    lock.write_text(f"numpy=={NUMPY}\n")
    match = r"^the environment has changed:\n  flag jax_enable_x64 is True, was False$"
    with pytest.raises(EnvironmentMismatch, match=match):
        environment.check(lock)


def test_missing_files(tmp_path, lock):
    with pytest.raises(FileNotFoundError):
        environment.check(tmp_path / "none.lock")
    with pytest.raises(FileNotFoundError):
        environment.check(lock, tmp_path / "none.json")
