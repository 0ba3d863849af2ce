"""What every quantiser promises, on any tree, under any transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantized.quantizers import ALWAYS_LEVELS, CASES, QUANTIZERS

from bilevel import iterate, number_formats, quantized
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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thinned(2)
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

    final = quantized.final(quantizer, state, latent)
    compiled = jax.jit(quantized.final, static_argnums=0)(quantizer, state, latent)
    chex.assert_trees_all_close(compiled, final, rtol=1e-6, atol=1e-6)
    if name in ALWAYS_LEVELS:
        # An offset may cancel a level.
        chex.assert_trees_all_close(weights, final, rtol=2e-6, atol=1e-6)
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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thinned(4)
def test_bfloat16(name):
    dtype = jnp.bfloat16  # float64: below
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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thinned(4)
def test_grad_vmap_and_scan(name):
    quantizer = QUANTIZERS[name]
    latent, state = started(name, jnp.float64)
    coefficients = jax.random.normal(jax.random.key(1), (2, 6, 5))
    loss = loss_of(quantizer, coefficients)
    slopes = jax.grad(loss, (0, 1))
    chosen = chosen_of(latent)
    compiled = jax.jit(slopes)
    single = compiled(chosen, state.learned, state, latent)

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
    for _ in range(3):
        gradient, _ = compiled(chosen, state.learned, state, latent)
        chosen = [c - 0.01 * g for c, g in zip(chosen, gradient, strict=True)]
        state = quantized.advance(state)
    chex.assert_trees_all_close(looped[0], chosen, rtol=1e-12, atol=1e-14)
    assert int(looped[1].step) == 3


# Every kind of state: without, and with what is learned, of one and several arrays.
@pytest.mark.parametrize("name", ["adaste", "lsq_plus", "lsq", "learned_levels"])
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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thinned(3)
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
    both = {"a/kernel": jnp.ones(2), "a": {"kernel": jnp.zeros(2)}}
    with pytest.raises(
        ValueError, match=r"several leaves have the path \['a/kernel'\]"
    ):
        quantized.init(QUANTIZERS["bop"], both)


@pytest.mark.parametrize("name", ["xnor", "twn", "lsq", "ste_of_channels"])
def test_channels_need_two_axes(name):
    def run():
        latent, state = quantized.init(QUANTIZERS[name], {"kernel": jnp.ones(5)})
        return quantized.apply(QUANTIZERS[name], state, latent)

    with pytest.raises(ValueError, match=r"needs weights \[..., out\]"):
        run()


def test_draws_differ_between_leaves_steps_and_quantisers():
    q = QUANTIZERS["binary_connect_drawn"]
    params = {
        "a": {"kernel": jnp.full((8, 8), 0.5)},
        "b": {"kernel": jnp.full((8, 8), 0.5)},
    }
    latent, state = quantized.init(q, params, key=KEY)
    one = quantized.apply(q, state, latent)
    assert np.any(one["a"]["kernel"] != one["b"]["kernel"])
    later = quantized.apply(q, quantized.advance(state), latent)
    assert np.any(one["a"]["kernel"] != later["a"]["kernel"])
    (_, first), (_, second) = (quantized.init(q, params, w, key=KEY) for w in "ab")
    pair = quantized.apply(q, second, quantized.apply(q, first, latent))
    assert np.any(pair["a"]["kernel"] != pair["b"]["kernel"])


@pytest.mark.parametrize(
    "name", ["reste", "lsq_plus", "xnor", "pact", "twn", "ste_posit"]
)
def test_final_is_the_export_where_it_is_not_compiled(name):
    quantizer = QUANTIZERS[name]
    kernel = jax.random.normal(KEY, (77, 13), jnp.float32)
    latent, state = quantized.init(quantizer, {"kernel": kernel}, key=KEY)
    final = quantized.final(quantizer, state, latent)
    exported = quantized.export(quantizer, state, latent)
    chex.assert_trees_all_equal(exported.params(latent), final)


@pytest.mark.parametrize("name", ["ste", "xnor", "twn", "dorefa", "approx_sign"])
def test_narrow_latent_weights_are_worked_on_in_float32(name):
    kernel = jax.random.normal(KEY, (64, 33)).astype(jnp.bfloat16)
    codes = []
    for own in (kernel, kernel.astype(jnp.float32)):
        latent, state = quantized.init(QUANTIZERS[name], {"kernel": own})
        made = quantized.export(QUANTIZERS[name], state, latent)
        codes.append(made.quantized["kernel"].codes)
    np.testing.assert_array_equal(*codes)


def test_levels_that_are_no_numbers_are_not_exported():
    q = quantized.ste(number_formats.by_name("float8_e4m3fn"), scale=0.001)
    latent, state = quantized.init(q, {"kernel": jnp.array([0.1, 1.0])})
    with pytest.raises(ValueError, match="1 weights of kernel are not finite"):
        quantized.export(q, state, latent)
    clipped = quantized.clipped_ste(number_formats.by_name("float8_e4m3fn"))
    latent, state = quantized.init(clipped, {"kernel": jnp.array([500.0])})
    assert quantized.apply(clipped, state, latent)["kernel"].tolist() == [448.0]


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_bad_scales(scale):
    for make in (quantized.ste, quantized.learned_scale, quantized.learned_levels):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            make(number_formats.symmetric(3), scale=scale)
    q = quantized.ste(number_formats.symmetric(3), scale=jnp.ones((3, 1, 1)))
    latent, state = quantized.init(q, {"kernel": jnp.ones((5, 4))})
    with pytest.raises(ValueError, match="does not broadcast"):
        quantized.apply(q, state, latent)


def test_strengths_may_be_traced():
    x = jnp.linspace(-1, 1, 5)

    def weights(kappa):
        q = quantized.tanh_projection(number_formats.binary(), kappa)
        return q.quantize(x, (), quantized.At(jnp.zeros((), jnp.int32)))

    got = jax.jit(jax.vmap(weights))(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(got, np.tanh(np.outer([1.0, 3.0], x)), rtol=1e-12)
