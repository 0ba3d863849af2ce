"""Identity of states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.experiments import digests


def test_records_name_leaves():
    params = {"w": jnp.zeros((2, 3), jnp.float32), "b": jnp.zeros((), jnp.bfloat16)}
    records = digests.leaf_records((optax.adam(0.1).init(params), jax.random.key(3)))
    types = {name: (record.dtype, record.shape) for name, record in records.items()}
    assert types == {
        "[0][0].count": ("int32", ()),
        "[0][0].mu['b']": ("bfloat16", ()),
        "[0][0].mu['w']": ("float32", (2, 3)),
        "[0][0].nu['b']": ("bfloat16", ()),
        "[0][0].nu['w']": ("float32", (2, 3)),
        "[1]": ("key<fry>", (2,)),
    }
    assert records["[1]"].key == "threefry2x32"


def test_known_digest():
    # printf '\0\0\x80\x3f' | sha256sum: 1.0 as float32, little-endian.
    one = digests.leaf_records({"x": jnp.ones((), jnp.float32)})["['x']"]
    assert one.sha256.startswith("e00e5eb9444182f352323374ef4e08eb")


def test_every_bit_counts():
    base = {"w": jnp.arange(4.0, dtype=jnp.float32), "key": jax.random.key(0)}
    assert digests.digest(base) == digests.digest(jax.tree.map(lambda x: x, base))
    others = [
        {**base, "w": base["w"].at[3].set(jnp.nextafter(base["w"][3], jnp.inf))},
        {**base, "w": base["w"].reshape(2, 2)},
        {**base, "w": base["w"].view(jnp.int32)},
        {**base, "w": -base["w"]},  # 0.0 and -0.0 are other bits
        {**base, "key": jax.random.key(1)},
        {**base, "key": jax.random.key_data(base["key"])},
        {"v": base["w"], "key": base["key"]},
    ]
    assert len({digests.digest(one) for one in [base, *others]}) == 1 + len(others)


def test_leaves_are_seen_as_jit_sees_them():
    leaves = (3, 0.5, np.ones(2), np.float32(1))
    inside = jax.jit(lambda tree: tree)(leaves)
    assert digests.leaf_records(leaves) == digests.leaf_records(inside)


def test_what_is_no_array():
    with pytest.raises(ValueError, match=r"^leaf \['name'\] is a str; a state holds"):
        digests.leaf_records({"name": "adam"})
