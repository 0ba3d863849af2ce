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
from bilevel.experiments import checkpoint, digests
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
        assert done == [False, False, True, False, True, True, False]
        assert checkpoints.save(370, {"x": jnp.asarray(370)}, force=True)
    assert checkpoint.latest_step(folder) == 370
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


@reads_damage
def test_flipped_byte_is_found_and_the_leaf_named(copied):
    folder, states = copied
    path = largest_file(folder / "10")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError) as caught:
        restored(folder, large_state(0))
    message = str(caught.value)
    expected = digests.leaf_records(states[10])["['large']"].sha256
    assert "leaf ['large'] has sha256 " in message
    assert f"expected {expected[:12]}" in message
    assert "Step 5 is intact: to resume from it, delete the later ones" in message
    shutil.rmtree(folder / "10")
    found, step = restored(folder, large_state(0))
    assert step == 5
    assert_same(found, states[5])


@reads_damage
def test_truncated_file(copied):
    folder, _ = copied
    path = largest_file(folder / "10")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        CheckpointError, match=r"10 cannot be read \(.*Step 5 is intact"
    ):
        restored(folder, large_state(0))


@reads_damage
def test_no_damage_passes(saved, tmp_path):
    """Whatever file is damaged: an error that says so, or the right state."""
    folder, states = saved
    files = [one for one in (folder / "10").rglob("*") if one.is_file()]
    assert len(files) > 5
    messages = []
    for number, file in enumerate(files):
        for kind in ("flip", "truncate"):
            copy = tmp_path / f"{number}{kind}"
            shutil.copytree(folder, copy)
            data = bytearray(file.read_bytes())
            half = len(data) // 2
            data[half] ^= 1
            data = data if kind == "flip" else data[:half]
            (copy / file.relative_to(folder)).write_bytes(bytes(data))
            try:
                state, step = restored(copy, large_state(0))
            except CheckpointError as error:
                messages.append(str(error))
            else:
                assert step == 10
                assert_same(state, states[10])
    assert len(messages) >= 8
    assert all("Step 5 is intact" in message for message in messages)


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
    with pytest.raises(CheckpointError, match=r"cannot be read \(.*No other"):
        restored(folder, {"x": jnp.ones(2)})


def test_later_format(folder, monkeypatch):
    state = {"x": jnp.ones(2)}
    monkeypatch.setattr(checkpoint, "_FORMAT", 2)
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(3, state)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2; this version of bilevel"):
        restored(folder, state)


def test_remnants_of_a_killed_save_are_removed(copied):
    folder, states = copied
    remnant = folder / "20.orbax-checkpoint-tmp"
    shutil.copytree(folder / "10", remnant)
    assert checkpoint.latest_step(folder) == 10
    found, step = restored(folder, large_state(0))
    assert step == 10
    assert_same(found, states[10])
    assert not remnant.exists()


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
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
