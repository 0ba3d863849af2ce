"""Quantised activations: one function, called in the model."""

from functools import partial

import jax
import jax.numpy as jnp

from bilevel.quantized.quantizer import At, Quantizer, Static, as_latent
from bilevel.quantized.tree import first_learned
from bilevel.trees import Tree


def activation(
    quantizer: Quantizer,
    inputs: jax.Array,
    learned: Tree = (),
    *,
    step: jax.Array | int = 0,
    key: jax.Array | None = None,
    batch_axes: int = 1,
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
        batch_axes: how many of the first axes count examples; 0 in a model that is
            mapped over them. `lsq` needs to know: its factor counts features.

    Returns:
        Quantised activations, of the shape and dtype of the inputs.

    Raises:
        ValueError: inputs that are not floats; a quantiser that learns, and nothing
            learned; one for weights alone; batch_axes that is no number of axes.

    Example:
        >>> from bilevel import number_formats
        >>> from bilevel.quantized import clipped_ste
        >>> sign = clipped_ste(number_formats.binary())
        >>> activation(sign, jnp.array([0.3, -2.0])).tolist()
        [1.0, -1.0]
    """
    inputs = as_latent(f"activation: {quantizer.name}", inputs)
    expected = jax.eval_shape(partial(first_learned, quantizer), inputs)
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
    if not (isinstance(batch_axes, int) and batch_axes >= 0):
        raise ValueError(
            f"activation: batch_axes must be 0 or a number of axes, got {batch_axes!r}."
        )
    # One example alone may come without an axis for examples.
    counted = Static(min(batch_axes, max(inputs.ndim - 1, 0)))
    at = At(jnp.asarray(step, jnp.int32), key, counted)
    return quantizer.quantize(inputs, learned, at)
