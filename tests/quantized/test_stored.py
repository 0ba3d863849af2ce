"""Exports as files, and quantisers that pickle: finding Q5."""

import inspect
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantized.quantizers import CASES, INT4, QUANTIZERS

from bilevel import number_formats, quantized
from bilevel.quantized import scales, stored

KEY = jax.random.key(0)


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", CASES)
def test_q5_quantisers_pickle(name):
    """With all of their arguments: a forgotten one would be its default again."""
    q = QUANTIZERS[name]
    factory, recipe = q.recipe.factory, q.recipe
    told = inspect.signature(factory).bind(*recipe.args, **recipe.kwargs).arguments
    assert set(told) == set(inspect.signature(factory).parameters)
    again = pickle.loads(pickle.dumps(q))
    assert (again.name, again.per_channel) == (q.name, q.per_channel)
    kept = [again.recipe.args, again.recipe.kwargs]
    assert (
        str(kept).split(" at 0x")[0]
        == str([recipe.args, recipe.kwargs]).split(" at 0x")[0]
    )


def test_q5_a_pickled_quantiser_is_the_same():
    w = {"kernel": jax.random.normal(KEY, (6, 5))}
    for name in ("lsq", "xnor", "learned_levels"):
        q = QUANTIZERS[name]
        latent, state = quantized.init(q, w)
        again, kept = pickle.loads(pickle.dumps((q, state)))
        a = quantized.export(q, state, latent)
        b = quantized.export(again, kept, latent)
        same_bits(a.params(latent)["kernel"], b.params(latent)["kernel"])
        back = pickle.loads(pickle.dumps(a))
        same_bits(a.params(latent)["kernel"], back.params(latent)["kernel"])


def cases():
    """Exports of every kind: signed and unsigned codes, offsets, levels, ..."""
    own = number_formats.codebook([-1.0, -0.2, 0.5, 1.0, 2.0], "own")
    anonymous = own._replace(recipe=None)
    floats = number_formats.minifloat(3, 2, "finite", bias=2)
    signed = number_formats.affine(4, zero_point=3)._replace(recipe=None, name="mine")
    by_channel = scales.of_channels(scales.max_abs)
    return {
        "binary": quantized.xnor(),
        "int4": quantized.ste(INT4, scale=by_channel),
        "no scale": quantized.clipped_ste(number_formats.ternary()),
        "offset": quantized.lsq_plus(number_formats.affine(3, signed=False)),
        "levels": quantized.learned_levels(number_formats.symmetric(3)),
        "posit": quantized.ste(number_formats.posit(11, 1), scale=scales.mean_abs),
        "minifloat": quantized.ste(floats),
        "24 bits": quantized.ste(number_formats.symmetric(24), scale=scales.max_abs),
        "codebook": quantized.ste(own),
        "of a user": quantized.ste(anonymous, scale=by_channel),
        "of a user, signed": quantized.ste(signed, scale=scales.max_abs),
        "scaled": quantized.ste(number_formats.scaled(floats, 0.1)),
        "dorefa": quantized.dorefa(3),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.thinned(3)
def test_q5_an_export_is_saved_and_loaded_bit_by_bit(dtype, tmp_path):
    path = tmp_path / "weights.export"
    rest = {"bias": jnp.arange(3, dtype=dtype), "n": jnp.arange(2), "key": KEY}
    w = jax.random.normal(KEY, (7, 5)).astype(dtype)
    for name, q in cases().items():
        if dtype != jnp.float32 and name in ("posit", "24 bits", "no scale", "scaled"):
            continue
        latent, state = quantized.init(q, {"a": {"kernel": w}, **rest})
        made = quantized.export(q, state, latent)
        made.save(path)
        found = quantized.load_export(str(path))
        assert list(found.quantized) == ["a/kernel"], name
        one, other = found.quantized["a/kernel"], made.quantized["a/kernel"]
        same_bits(one.codes, other.codes)
        same_bits(one.decode(), other.decode())
        same_bits(one.decode(), quantized.final(q, state, latent)["a"]["kernel"])
        for kept in ("bias", "n"):
            same_bits(found.rest[kept], made.rest[kept])
        assert jnp.all(
            jax.random.key_data(found.rest["key"]) == jax.random.key_data(KEY)
        )
        # As long as it says, but for the head, the key, and a user's table of levels.
        line = path.read_bytes().split(b"\n", 3)[2]
        extra = jax.random.key_data(KEY).nbytes
        size = json.loads(line)["size"]
        if "of a user" not in name:
            assert size == made.num_bytes + extra
        assert path.stat().st_size == size + len(line) + len(stored.MAGIC) + 66
    assert [one.name for one in tmp_path.iterdir()] == ["weights.export"]


def test_q5_damage_is_detected(tmp_path):
    path = tmp_path / "weights.export"
    q = QUANTIZERS["lsq"]
    latent, state = quantized.init(q, {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(2)})
    quantized.export(q, state, latent).save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(
            ValueError, match=r"is damaged|is no export of this version"
        ):
            quantized.load_export(path)
    for end in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(
            ValueError, match=r"is damaged|is no export of this version"
        ):
            quantized.load_export(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="is damaged"):
        quantized.load_export(path)


def test_q5_what_cannot_be_written(tmp_path):
    own = number_formats.symmetric(12)._replace(recipe=None)
    latent, state = quantized.init(quantized.ste(own), {"kernel": jnp.ones(3)})
    made = quantized.export(quantized.ste(own), state, latent)
    with pytest.raises(ValueError, match="a format of your own, of 12 bits"):
        made.save(tmp_path / "weights.export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8, 11, 16, 24])
def test_q5_packing(bits, monkeypatch):
    monkeypatch.setattr(stored, "_CHUNK", 16)
    rng = np.random.default_rng(bits)
    for dtype, least in (("int32", -(2 ** (bits - 1))), ("uint32", 0)):
        codes = rng.integers(least, least + 2**bits, 53).astype(dtype)
        data = stored.packed(codes, bits)
        assert len(data) == -(-53 * bits // 8)
        same_bits(stored.unpacked(memoryview(data), 53, bits, dtype), codes)
    assert stored.packed(np.array([1, -1, 2], np.int8), 4).hex() == "1f20"
