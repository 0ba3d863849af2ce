"""Quantised activations: one function, called in the model."""

import jax
import jax.numpy as jnp

from bilevel.quantized.quantizer import At, Quantizer, as_latent
from bilevel.trees import Tree


def activation(
    quantizer: Quantizer,
    inputs: jax.Array,
    learned: Tree = (),
    *,
    step: jax.Array | int = 0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Quantises activations by any quantiser, in a linen or nnx model or outside.

    Args:
        quantizer: any that is not for weights alone: for signs
            `clipped_ste(number_formats.binary())`, or `pact(4)`,
            `lsq(number_formats.affine(8, signed=False))`, ...
        inputs: floats of any shape.
        learned: what the quantiser learns, a parameter of the model as a rule:
            `self.param("clip", lambda key: q.learn(example))`, the example being
            some inputs.
        step: of the optimiser, for quantisers with a schedule.
        key: for quantisers that draw.

    Returns:
        Quantised activations, of the shape and dtype of the inputs.

    Raises:
        ValueError: inputs that are not floats; a quantiser that learns, and nothing
            learned; one for weights alone.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized import clipped_ste
        >>> sign = clipped_ste(number_formats.binary())
        >>> activation(sign, jnp.array([0.3, -2.0])).tolist()
        [1.0, -1.0]
    """
    inputs = as_latent(f"activation: {quantizer.name}", inputs)
    expected = jax.eval_shape(quantizer.learn, inputs)
    if jax.tree.structure(learned) != jax.tree.structure(expected):
        raise ValueError(
            f"activation: {quantizer.name} learns {jax.tree.structure(expected)}, got "
            f"{jax.tree.structure(learned)}; make it by quantizer.learn(inputs), once, "
            "as a parameter of the model (of an nnx.Param, pass its value)."
        )
    if jax.eval_shape(quantizer.start, inputs, None).shape != inputs.shape:
        raise ValueError(
            f"activation: {quantizer.name} has several latent numbers for a weight; it "
            "is for weights alone."
        )
    if quantizer.name in ("bop", "proxquant"):
        raise ValueError(
            f"activation: {quantizer.name} acts between the steps of an optimiser, and "
            "is for weights alone."
        )
    at = At(jnp.asarray(step, jnp.int32), key)
    return quantizer.quantize(inputs, learned, at)
