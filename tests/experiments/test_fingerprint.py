"""The numerics fingerprint: its values, and that it names what moved."""

import ast
import hashlib
import json
import math
import os
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

from bilevel.experiments import environment, fingerprint, host_numerics
from bilevel.experiments.fingerprint import Golden, Item

# Measured apart from this code, with jax 0.10.2 and 0.12.0: the first 12 hex digits of
# the sha256 of the bytes.
MEASURED = {
    "prng_bits": (np.uint32, "6f27e43947cf"),
    "split": (np.uint32, "f699db7a37a5"),
    "permutation": (np.int32, "90b49fe9063f"),
}
FLOATS = {
    "normal",
    "lecun_normal",
    "glorot_uniform",
    "dense",
    "adam_step",
    "matmul_f32",
    "numpy",
}


@pytest.fixture(scope="module")
def computed():
    return fingerprint.compute()


@pytest.fixture
def golden():
    return fingerprint.read()


def sha(values, dtype):
    return hashlib.sha256(np.array(values, dtype).tobytes()).hexdigest()[:12]


def test_exact_values_are_those_measured(computed):
    assert jax.config.jax_enable_x64  # which changes nothing
    found = {
        name: (dtype, sha(computed[name].values, dtype))
        for name, (dtype, _) in MEASURED.items()
    }
    assert found == MEASURED


def test_golden_file_is_what_is_computed(computed, golden):
    assert fingerprint.difference(golden.items, computed) == []
    tiers = {name: item.tier for name, item in golden.items.items()}
    expected = dict.fromkeys(MEASURED, "exact") | dict.fromkeys(FLOATS, "float")
    assert tiers == expected
    for name in FLOATS:
        assert np.ptp(golden.items[name].values) > 0 or name == "adam_step"
        np.testing.assert_allclose(
            computed[name].values, golden.items[name].values, rtol=1e-6, atol=1e-6
        )
    # By hand: the first step of Adam has the size of its learning rate.
    np.testing.assert_allclose(computed["adam_step"].values, [-0.1] * 3, rtol=1e-4)


def test_tiers(computed):
    exact = fingerprint.compute(["exact"])
    assert exact == {name: computed[name] for name in MEASURED}


def test_what_a_program_sets_does_not_matter(computed):
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
    ):
        assert fingerprint.compute() == computed


def test_write_and_read(tmp_path, computed, golden):
    fingerprint.write(tmp_path / "golden.json")
    written = fingerprint.read(tmp_path / "golden.json")
    assert written.items == computed
    assert written.flags == {**golden.flags, "jax_enable_x64": True}
    assert written.packages.keys() == golden.packages.keys()
    text = (tmp_path / "golden.json").read_text()
    assert len(text.splitlines()) == 4 + len(computed) + 2 + 1
    assert json.loads(text)["format_version"] == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ('{"format_version": 2}', "format 2, expected 1"),
        ('{"format_version": 1, "flags": {}, "packages": {}}', "'items'"),
        ('{"format_version": 1, "items": []}', "AttributeError"),
        ('{"format_version": 1, "items": {"a": {"tier": "exact"}}}', "'values'"),
    ],
)
def test_what_is_no_golden_file(tmp_path, text, why):
    path = tmp_path / "golden.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"golden.json is no fingerprint: .*{why}"):
        fingerprint.read(path)


def test_difference_in_words():
    golden = {
        "bits": Item("exact", (1.0, 4294967295.0)),
        "close": Item("float", (1.0, 0.0)),
        "gone": Item("exact", (1.0,)),
        "short": Item("exact", (1.0, 2.0)),
        "wide": Item("float", (1.0, 2.0, 3.0)),
    }
    found = {
        "bits": Item("exact", (1.0, 4294967294.0)),
        "close": Item("float", (1.0 + 5e-7, 5e-7)),
        "new": Item("exact", (1.0,)),
        "short": Item("exact", (1.0,)),
        "wide": Item("float", (1.0, 2.0001, float("nan"))),
    }
    assert fingerprint.difference(golden, golden) == []
    assert fingerprint.difference(golden, found) == [
        "bits: 1 of 2 values differ, the first 4294967294, expected 4294967295",
        "gone: unknown to this version of bilevel",
        "new: unknown to the golden file",
        "short: 1 values, expected 2",
        "wide: 2 of 3 values differ, the first 2.0001, expected 2",
    ]


def doctored(golden, **packages):
    """Returns a golden file of which one random number and some versions are others."""
    bits = golden.items["prng_bits"]
    items = golden.items | {
        "prng_bits": bits._replace(values=(bits.values[0] + 1, *bits.values[1:]))
    }
    return Golden(items, golden.flags, golden.packages | packages)


def test_problems_name_the_package(golden, monkeypatch):
    # The suite runs with x64, which is one of the flags.
    with jax.enable_x64(False):
        assert fingerprint.problems(golden) == []
        now = fingerprint.current()
    monkeypatch.setattr(fingerprint, "current", lambda: now)
    golden = golden._replace(packages=now.packages)
    # Other packages with the same numbers are no problem,
    moved = golden._replace(packages=golden.packages | {"jax": "0.9.1"})
    assert fingerprint.problems(moved) == []
    # but with others they are the suspects.
    found = fingerprint.problems(doctored(golden, jax="0.9.1", optax="0.1"))
    packages = now.packages
    number = "4070199207, expected 4070199208"
    assert found == [
        f"numbers: prng_bits: 1 of 64 values differ, the first {number}",
        f"numbers changed; what moved: jax is {packages['jax']}, was 0.9.1; optax is"
        f" {packages['optax']}, was 0.1",
    ]
    assert fingerprint.problems(doctored(golden))[1:] == [
        "numbers changed; what moved: neither a flag nor a package: XLA_FLAGS, or CPU"
    ]


def test_flags_are_plain_values():
    with jax.numpy_dtype_promotion("strict"):
        found = fingerprint.flags()
    assert json.loads(json.dumps(found)) == found
    assert repr(found["jax_numpy_dtype_promotion"]) == "'strict'"


CODE = """
from bilevel.experiments import fingerprint, host_numerics
print((fingerprint.problems(fingerprint.read()), host_numerics.record()))
"""


def problems_with(**variables):
    """Returns the problems of a process with these variables, and its arithmetic."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return ast.literal_eval(done.stdout)


@pytest.mark.thorough
def test_problems_name_the_flag_that_changes_numbers():
    found, _ = problems_with(JAX_THREEFRY_PARTITIONABLE="0")
    moved = "jax_threefry_partitionable is False, was True"
    assert found[0] == f"flag {moved}"
    assert found[-1] == f"numbers changed; what moved: {moved}"
    names = [one.split(": ")[1] for one in found[1:-1]]
    # All that is random: the step of Adam is not.
    assert names == sorted((MEASURED.keys() | FLOATS) - {"adam_step", "numpy"})
    assert "numbers: prng_bits: 64 of 64 values differ, the first " in found[7]


# -- NumPy ----------------------------------------------------------------------------


def test_numpy_is_in_the_fingerprint(computed):
    """Against the definition of exp and tanh, and the trace of the squared matrix."""
    values = computed["numpy"].values
    points = [index / 237 for index in range(8)]
    expected = [*(math.exp(-x) for x in points), *(math.tanh(x) for x in points)]
    np.testing.assert_allclose(values[-16:], expected, rtol=1e-14)
    assert list(values[16:32]) == sorted(values[16:32], reverse=True)


def kernels(here):
    """Returns variables that choose other kernels than the best of an x86."""
    features = here["simd"].split()
    is_openblas = here["blas"].startswith("scipy-openblas")
    if platform.machine() != "x86_64" or not is_openblas or len(features) < 2:
        return {}
    return {
        "OPENBLAS_CORETYPE": "NEHALEM",
        "NPY_DISABLE_CPU_FEATURES": features[-1],
    }


@pytest.mark.thorough
def test_problems_name_x64_and_the_kernels_of_numpy():
    here = host_numerics.record()
    chosen = kernels(here)
    problems, there = problems_with(JAX_ENABLE_X64="1", **chosen)
    # `environment.check` names what moved, although the numbers are within 1e-6,
    assert problems == [
        "flag jax_enable_x64 is True, was False",
        *(f"flag {name} is {value!r}, was None" for name, value in chosen.items()),
    ]
    # and a comparison of two runs the bits.
    lines = environment.difference({"numpy": here}, {"numpy": there}, ["numpy"])
    if chosen:
        assert f"numpy bits: {here['bits']} -> {there['bits']}" in lines
        fewer = " ".join(here["simd"].split()[:-1])
        assert f"numpy simd: {here['simd']} -> {fewer}" in lines
    else:
        assert lines == []
