"""What every quantiser promises, on any tree, under any transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantized.quantizers import ALWAYS_LEVELS, QUANTIZERS

from bilevel import iterate, quantized
from bilevel.experiments import checkpoint

KEY = jax.random.key(0)


def params_of(dtype):
    """A tree with chosen leaves in two places, and others."""
    a, b = jax.random.normal(KEY, (2, 6, 5)).astype(dtype)
    return {
        "first": [{"kernel": a}, 2.0 * jnp.ones(3)],
        "kernel": b,
        "n": jnp.arange(2),
    }


def started(name, dtype=jnp.float32):
    return quantized.init(QUANTIZERS[name], params_of(dtype), key=KEY)


def loss_of(quantizer, coefficients):
    """`(latent leaves, learned, state, rest) -> [], ` linear in the weights."""

    def loss(chosen, learned, state, latent):
        latent = {
            **latent,
            "kernel": chosen[1],
            "first": [{"kernel": chosen[0]}, latent["first"][1]],
        }
        own = state._replace(learned=learned)
        new = quantized.apply(quantizer, own, latent)
        terms = zip(
            (new["first"][0]["kernel"], new["kernel"]), coefficients, strict=True
        )
        return sum(jnp.sum(w * c) for w, c in terms)

    return loss


def chosen_of(latent):
    return [latent["first"][0]["kernel"], latent["kernel"]]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_tree(name):
    quantizer = QUANTIZERS[name]
    latent, state = started(name)
    params = params_of(jnp.float32)
    assert sorted(state.learned) == ["first/0/kernel", "kernel"]
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(quantized.apply, 1), static_argnums=0)
    weights = run(quantizer, state, latent)
    run(quantizer, quantized.advance(state), latent)
    assert jax.tree.structure(weights) == jax.tree.structure(params)
    for new, old in zip(jax.tree.leaves(weights), jax.tree.leaves(params), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    np.testing.assert_array_equal(weights["first"][1], params["first"][1])
    np.testing.assert_array_equal(weights["n"], params["n"])

    final = jax.jit(quantized.final, static_argnums=0)(quantizer, state, latent)
    if name in ALWAYS_LEVELS:
        chex.assert_trees_all_close(weights, final, rtol=2e-6)
    exported = quantized.export(quantizer, state, latent)
    chex.assert_trees_all_equal(exported.params(latent), final)
    for path, made in exported.quantized.items():
        assert np.issubdtype(made.codes.dtype, np.integer)
        levels = (
            quantizer.number_format.levels() if made.levels is None else made.levels
        )
        assert (
            len(np.unique(made.codes)) <= len(levels) <= 2**quantizer.number_format.bits
        )
        assert path in str(exported)
    # The levels are as near as any, where there is nothing but a scale.
    moved = jax.jit(quantized.project, static_argnums=0)(quantizer, state, latent)
    assert jax.tree.structure(moved) == jax.tree.structure(latent)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_dtypes(name, dtype):
    latent, state = started(name, dtype)
    quantizer = QUANTIZERS[name]
    assert all(leaf.dtype == dtype for leaf in chosen_of(latent))

    @jax.jit
    def both(latent, state):
        chosen = chosen_of(latent)
        loss = loss_of(quantizer, [jnp.ones((6, 5), dtype)] * 2)
        weights = quantized.apply(quantizer, state, latent)
        return weights, jax.grad(loss)(chosen, state.learned, state, latent)

    weights, gradient = both(latent, state)
    assert all(leaf.dtype == dtype for leaf in chosen_of(weights) + gradient)
    assert all(np.all(np.isfinite(g.astype(np.float32))) for g in gradient)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_grad_vmap_and_scan(name):
    quantizer = QUANTIZERS[name]
    latent, state = started(name, jnp.float64)
    coefficients = jax.random.normal(jax.random.key(1), (2, 6, 5))
    loss = loss_of(quantizer, coefficients)
    slopes = jax.grad(loss, (0, 1))
    chosen = chosen_of(latent)
    single = jax.jit(slopes)(chosen, state.learned, state, latent)

    def batched(scale):
        return slopes([scale * c for c in chosen], state.learned, state, latent)

    mapped = jax.jit(jax.vmap(batched))(jnp.array([1.0, 0.5]))
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[0], mapped), single, rtol=1e-12, atol=1e-14
    )

    def step(carry):
        chosen, state = carry
        gradient, _ = slopes(chosen, state.learned, state, latent)
        chosen = [c - 0.01 * g for c, g in zip(chosen, gradient, strict=True)]
        return chosen, quantized.advance(state)

    looped = jax.jit(lambda c: iterate(step, c, num_steps=3))((chosen, state))
    carry = (chosen, state)
    for _ in range(3):
        carry = jax.jit(step)(carry)
    chex.assert_trees_all_close(looped[0], carry[0], rtol=1e-12, atol=1e-14)
    assert int(looped[1].step) == 3


@pytest.mark.parametrize("name", QUANTIZERS)
def test_state_checkpoints(name, tmp_path):
    whole = started(name)
    with checkpoint.open_checkpoints(tmp_path / "own") as own:
        own.save(1, whole, force=True)
    back = checkpoint.load(tmp_path / "own", whole)
    chex.assert_trees_all_equal(
        *(
            jax.tree.map(
                lambda x: (
                    jax.random.key_data(x)
                    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
                    else x
                ),
                tree,
            )
            for tree in (back, whole)
        )
    )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_is_no_number_stays_none(name):
    quantizer = QUANTIZERS[name]
    latent, state = started(name)
    leaf = latent["kernel"]
    poisoned = {**latent, "kernel": leaf.at[(2, 3)].set(jnp.nan)}
    weights = jax.jit(quantized.apply, static_argnums=0)(quantizer, state, poisoned)
    assert np.any(np.isnan(weights["kernel"][2, 3]))
    with pytest.raises(ValueError, match="not finite"):
        quantized.export(quantizer, state, poisoned)
    bad = params_of(jnp.float32)
    bad["kernel"] = bad["kernel"].at[2, 3].set(jnp.inf)
    with pytest.raises(ValueError, match=r"kernel: 1 of 30 weights are not finite"):
        quantized.init(quantizer, bad, key=KEY)


def test_bad_trees():
    quantizer = QUANTIZERS["clipped_ste"]
    with pytest.raises(ValueError, match="must be floats, got int"):
        quantized.init(quantizer, {"kernel": jnp.arange(3)})
    with pytest.raises(ValueError, match=r"chooses none of the leaves \['kernel'\]"):
        quantized.init(quantizer, {"kernel": jnp.ones(3)}, "weight")
    latent, state = quantized.init(quantizer, {"kernel": jnp.ones(3)})
    with pytest.raises(ValueError, match="latent weights lack"):
        quantized.apply(quantizer, state, {"other": latent["kernel"]})
    with pytest.raises(ValueError, match="must be floats, got int"):
        quantized.apply(quantizer, state, {"kernel": jnp.arange(3)})
    with pytest.raises(ValueError, match="the export has no leaf 'bias'"):
        quantized.export(quantizer, state, latent).params({"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match="traced; call it outside of jit"):
        jax.jit(lambda x: quantized.export(quantizer, state, x))(latent)
    for name in ("bayesbinn", "binary_connect_drawn"):
        latent, state = quantized.init(QUANTIZERS[name], {"kernel": jnp.ones(3)})
        with pytest.raises(ValueError, match="pass key="):
            quantized.apply(QUANTIZERS[name], state, latent)
