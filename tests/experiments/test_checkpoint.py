"""Checkpoints: what comes back is what was saved, or the leaf is named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel.experiments
from bilevel.datasets import manifest
from bilevel.experiments import digests, step_folder
from bilevel.experiments.checkpoint import CheckpointError, open_checkpoints

# A read that fails leaves futures of Orbax behind whose errors nobody asked for.
reads_damage = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

REPOSITORY = Path(bilevel.experiments.__file__).parents[2]


class Carried(NamedTuple):
    inner: dict
    adjoint: jax.Array
    flag: jax.Array


class State(NamedTuple):
    carried: Carried
    optimizer: optax.OptState
    key: jax.Array
    raw_key: jax.Array
    step: jax.Array
    nothing: None
    history: tuple


def make_state(seed: int) -> State:
    key = jax.random.key(seed)
    inner = {
        "a/b": jax.random.normal(key, (5, 3), jnp.float32),
        "half": jax.random.normal(key, (4,), jnp.bfloat16),
    }
    carried = Carried(inner, jnp.full((3,), seed, jnp.float64), jnp.asarray(True))
    optimizer = optax.chain(optax.clip(1.0), optax.adam(0.1))
    _, opt_state = optimizer.update(inner, optimizer.init(inner), inner)
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), 3)
    raw = jax.random.key_data(key)
    step = jnp.asarray(seed, jnp.int32)
    return State(carried, opt_state, key, raw, step, None, (keys, {}))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert digests.leaf_records(found) == digests.leaf_records(expected)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


def largest_file(folder: Path) -> Path:
    files = [one for one in folder.rglob("*") if one.is_file()]
    return max(files, key=lambda one: one.stat().st_size)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ckpt"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 5 and 10 of a state with one large leaf."""
    folder = tmp_path_factory.mktemp("saved") / "ckpt"
    states = {step: large_state(step) for step in (5, 10)}
    with open_checkpoints(folder) as checkpoints:
        for step, state in states.items():
            assert checkpoints.save(step, state)
    return folder, states


def large_state(seed):
    key = jax.random.key(seed)
    return {
        "large": jax.random.normal(key, (300, 300), jnp.float32),
        "small": jnp.asarray(seed, jnp.float32),
    }


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "copy")
    return tmp_path / "copy", saved[1]


def restored(folder, template):
    with open_checkpoints(folder) as checkpoints:
        return checkpoints.restore(template)


def in_python(code, folder, *options, **variables):
    """Runs a program in a process of its own, with the folder as its argument."""
    return subprocess.run(
        [sys.executable, *options, "-c", code, str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def reopened(folder):
    with open_checkpoints(folder) as checkpoints:
        return checkpoints


def test_round_trip(folder):
    state = make_state(7)
    with open_checkpoints(folder) as checkpoints:
        assert checkpoints.restore(state) is None
        assert checkpoints.save(7, state)
        found, step = checkpoints.restore(make_state(0))
    assert step == 7
    assert_same(found, state)
    # In a fresh process the template may be abstract.
    found, step = restored(folder, jax.eval_shape(lambda: make_state(0)))
    assert step == 7
    assert_same(found, state)
    # Free to go to any device, like the template.
    assert not any(leaf.committed for leaf in jax.tree.leaves(found))


def test_numbers_and_numpy_leaves_become_arrays(folder):
    state = {"count": 3, "rate": 0.1, "table": np.arange(4, dtype=np.int16)}
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(1, state)
        found, _ = checkpoints.restore(state)
    assert_same(found, jax.tree.map(jnp.asarray, state))


def test_buffers_may_be_donated_at_once(folder):
    state = jnp.arange(1_000_000, dtype=jnp.float32)
    expected = digests.digest(state)
    scaled = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(1, state)
        state = scaled(scaled(state))
        found, _ = checkpoints.restore(state)
        assert digests.digest(found) == expected
        scaled(found)  # what was restored can be donated too
        assert digests.digest(checkpoints.restore(state)[0]) == expected


def test_interval_and_two_latest_are_kept(folder):
    with open_checkpoints(folder, interval=100) as checkpoints:
        done = [checkpoints.save(s, {"x": jnp.asarray(s)}) for s in range(0, 420, 60)]
        assert [bool(d) for d in done] == [False] * 2 + [True, False] + [True] * 2 + [
            False
        ]
        assert done[2] == digests.digest({"x": jnp.asarray(120)})
        assert checkpoints.save(370, {"x": jnp.asarray(370)}, force=True)
    assert step_folder.latest_step(folder) == 370
    assert sorted(int(one.name) for one in folder.iterdir()) == [300, 370]
    # The interval goes on where it was.
    with open_checkpoints(folder, interval=100) as checkpoints:
        assert not checkpoints.save(399, {"x": jnp.asarray(399)})
        assert checkpoints.save(400, {"x": jnp.asarray(400)})


def test_step_must_be_later(folder):
    state = {"x": jnp.asarray(1.0)}
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(5, state)
        checkpoints.save(5, state, force=True)  # the same state: nothing to do
        other = {"x": jnp.asarray(2.0)}
        with pytest.raises(
            CheckpointError, match="holds step 5 already; step 5 cannot"
        ):
            checkpoints.save(5, other, force=True)
        with pytest.raises(
            CheckpointError, match="holds step 5 already; step 4 cannot"
        ):
            checkpoints.save(4, other, force=True)


def test_empty_leaf_is_named(folder):
    state = {"x": jnp.ones(2), "buffer": (jnp.zeros((0, 3)),)}
    with (
        open_checkpoints(folder) as checkpoints,
        pytest.raises(
            CheckpointError, match=r"leaf \['buffer'\]\[0\] has shape \(0, 3\)"
        ),
    ):
        checkpoints.save(1, state)


def test_time_between_saves(folder):
    now = 0.0
    with open_checkpoints(folder, 100, seconds=20.0, clock=lambda: now) as checkpoints:
        done = []
        for step in range(1, 8):
            now += 8.0
            done.append(bool(checkpoints.save(step, {"x": jnp.asarray(step)})))
    assert done == [False, False, True, False, False, True, False]


def test_one_step_of_several(folder):
    with open_checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.asarray(step)})
        found, step = checkpoints.restore({"x": jnp.asarray(0)}, step=1)
        assert (int(found["x"]), step) == (1, 1)
        with pytest.raises(CheckpointError, match="holds no step 3; there are 1, 2"):
            checkpoints.restore({"x": jnp.asarray(0)}, step=3)


@pytest.mark.parametrize("kind", ["flip", "truncate", "remove"])
@pytest.mark.thinned(3)
def test_every_damage_is_found_and_the_file_named(saved, tmp_path, kind):
    folder, states = saved
    files = [one for one in (folder / "10").rglob("*") if one.is_file()]
    assert len(files) > 6
    for number, file in enumerate(files):
        copy = tmp_path / f"{number}"
        shutil.copytree(folder, copy)
        victim = copy / file.relative_to(folder)
        data = bytearray(victim.read_bytes())
        half = len(data) // 2
        if kind == "flip":
            data[half] ^= 1
        victim.write_bytes(bytes(data if kind == "flip" else data[:half]))
        if kind == "remove":
            victim.unlink()
        if kind == "remove" and file.name == manifest.NAME:
            # Without it the step counts as unsaved.
            assert restored(copy, large_state(0))[1] == 5
            continue
        with pytest.raises(CheckpointError) as caught:
            restored(copy, large_state(0))
        message = str(caught.value)
        assert file.relative_to(folder / "10").as_posix() in message
        assert "Step 5 is intact: resume from it with --restore_step=5" in message
        found, _ = reopened(copy).restore(large_state(0), step=5)
        assert_same(found, states[5])


def test_checksums_that_stock_tools_verify(saved):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", manifest.NAME],
        cwd=saved[0] / "10",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_damage_that_has_valid_checksums(copied):
    """The digests of the leaves do not depend on those of the files."""
    folder, states = copied
    path = folder / "10" / "leaves.json"
    right = digests.leaf_records(states[10])["['small']"].sha256
    path.write_text(path.read_text().replace(right, "0" * 64))
    (folder / "10" / manifest.NAME).unlink()
    manifest.write(folder / "10")
    with pytest.raises(CheckpointError, match=r"leaf \['small'\] has sha256 "):
        restored(folder, large_state(0))


@reads_damage
def test_no_step_intact(copied):
    folder, _ = copied
    for step in (5, 10):
        path = largest_file(folder / str(step))
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"No other step is intact$"):
        restored(folder, large_state(0))


def test_dtype_is_not_cast(saved):
    template = {**large_state(0), "large": jnp.zeros((300, 300), jnp.bfloat16)}
    with pytest.raises(CheckpointError) as caught:
        restored(saved[0], template)
    assert "does not fit the template (nothing is cast" in str(caught.value)
    line = "\n  ['large']: stored float32[300, 300], template bfloat16[300, 300]"
    assert str(caught.value).endswith(line)


def test_dtype_is_cast_on_request(saved):
    template = {**large_state(0), "large": jnp.zeros((300, 300), jnp.bfloat16)}
    with open_checkpoints(saved[0]) as checkpoints:
        found, _ = checkpoints.restore(template, cast=True)
        template["large"] = jnp.zeros((300, 200), jnp.bfloat16)
        with pytest.raises(CheckpointError, match="does not fit the template"):
            checkpoints.restore(template, cast=True)
    expected = {**saved[1][10], "large": saved[1][10]["large"].astype(jnp.bfloat16)}
    assert_same(found, expected)


def test_every_difference_of_structure_is_listed(saved):
    template = {"large": jnp.zeros((300, 200), jnp.float32), "other": jnp.zeros(())}
    with pytest.raises(CheckpointError) as caught:
        restored(saved[0], template)
    dtype = jnp.zeros(()).dtype
    assert str(caught.value).splitlines()[1:] == [
        "  ['large']: stored float32[300, 300], template float32[300, 200]",
        f"  ['other']: stored nothing, template {dtype}[]",
        "  ['small']: stored float32[], template nothing",
    ]


def test_key_of_another_implementation(folder):
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"key": jax.random.key(0)})
        with pytest.raises(
            CheckpointError, match=r"stored key<fry>\[2\], template key<"
        ):
            checkpoints.restore({"key": jax.random.key(0, impl="rbg")})
        with pytest.raises(CheckpointError, match=r"template uint32\[2\]"):
            checkpoints.restore({"key": jax.random.key_data(jax.random.key(0))})


def test_foreign_checkpoint(folder):
    from orbax.checkpoint import v1 as ocp

    with ocp.training.Checkpointer(folder) as checkpointer:
        checkpointer.save(3, {"x": jnp.ones(2)})
    with pytest.raises(CheckpointError, match="3 is no checkpoint of this version of"):
        restored(folder, {"x": jnp.ones(2)})
    assert (folder / "3").is_dir()


def test_later_format(folder, monkeypatch):
    state = {"x": jnp.ones(2)}
    monkeypatch.setattr(step_folder, "_FORMAT", 3)
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(3, state)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 3; this version of bilevel"):
        restored(folder, state)


def test_step_without_checksums_counts_as_unsaved(copied, tmp_path):
    """A kill between Orbax's last word and ours."""
    folder, states = copied
    (folder / "10" / manifest.NAME).unlink()
    assert step_folder.steps(folder) == [5]
    found, step = restored(folder, large_state(0))
    assert step == 5
    assert_same(found, states[5])
    assert not (folder / "10").exists()
    assert (tmp_path / "copy-set-aside" / "10" / "leaves.json").exists()
    with open_checkpoints(folder) as checkpoints:
        assert checkpoints.save(10, states[10])


@pytest.mark.thorough
def test_disk_full(folder):
    """A write that the system refuses: what was saved before stays the last word."""
    code = """
import pathlib, resource, signal, sys
import jax.numpy as jnp
from bilevel.experiments.checkpoint import CheckpointError, open_checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = pathlib.Path(sys.argv[1])
try:
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        noise = __import__("numpy").random.default_rng(0).normal(size=100_000)
        checkpoints.save(2, {"x": jnp.asarray(noise)})
        checkpoints.wait()
except CheckpointError as error:
    print(error)
"""
    done = in_python(code, folder)
    assert f"cannot save to {folder} (" in done.stdout, done.stderr
    assert "; step 1 is saved. Mend that and run the same command" in done.stdout
    assert restored(folder, {"x": jnp.zeros(2, jnp.float32)})[1] == 1


def test_remnants_of_a_killed_save_are_removed(copied):
    folder, states = copied
    remnant = folder / "20.orbax-checkpoint-tmp"
    shutil.copytree(folder / "10", remnant)
    assert step_folder.latest_step(folder) == 10
    found, step = restored(folder, large_state(0))
    assert step == 10
    assert_same(found, states[10])
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(11, large_state(11))
    assert not remnant.exists()


@pytest.mark.thorough
def test_logging_of_the_program_is_unchanged(folder):
    code = """
import logging, pathlib, sys
import jax.numpy as jnp
from bilevel.experiments.checkpoint import open_checkpoints
before = list(logging.getLogger().handlers), logging.getLogger().level
with open_checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    assert checkpoints.restore({"x": jnp.ones(2)}) is None
    assert "orbax" not in sys.modules  # there was nothing to restore
    for step in (1, 2):
        checkpoints.save(step, {"x": jnp.ones(2)})
        assert not logging.getLogger().handlers
assert "orbax" in sys.modules
assert (list(logging.getLogger().handlers), logging.getLogger().level) == before
"""
    done = in_python(code, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.thorough
def test_restores_to_the_sharding_of_the_template(folder):
    code = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bilevel.experiments import digests
from bilevel.experiments.checkpoint import open_checkpoints
devices = np.array(jax.devices())
rows = NamedSharding(Mesh(devices.reshape(4), ("a",)), P("a"))
tiles = NamedSharding(Mesh(devices.reshape(2, 2), ("a", "b")), P("b", "a"))
whole = NamedSharding(tiles.mesh, P())
state = {"w": jnp.arange(32.0).reshape(8, 4), "key": jax.random.key(1),
         "n": jnp.ones(3)}
put = lambda s, w, k: {**s, "w": jax.device_put(s["w"], w),
                       "key": jax.device_put(s["key"], k)}
with open_checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    checkpoints.save(1, put(state, rows, NamedSharding(rows.mesh, P())))
    for template in (put(state, tiles, whole), state,
                     jax.eval_shape(lambda s: s, put(state, tiles, whole))):
        found, _ = checkpoints.restore(template)
        assert digests.digest(found) == digests.digest(state)
        for name in state:
            wanted = template[name]
            if isinstance(wanted, jax.Array):
                assert found[name].sharding == wanted.sharding, name
                assert found[name].committed == wanted.committed, name
    abstract = {"w": jax.ShapeDtypeStruct((8, 4), state["w"].dtype, sharding=tiles),
                "key": jax.eval_shape(lambda: state["key"]), "n": state["n"]}
    found, _ = checkpoints.restore(abstract)
    assert found["w"].sharding == tiles
"""
    devices = "--xla_force_host_platform_device_count=4"
    done = in_python(code, folder, "-W", "error::UserWarning", XLA_FLAGS=devices)
    assert done.returncode == 0, done.stderr
