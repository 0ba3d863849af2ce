"""Which axes of weights are output channels."""

from typing import TypeAlias

import jax

Channels: TypeAlias = bool | tuple[int, ...]
"""False: none, all weights share a scale. True: the last axis, of kernels `[in, out]`
and of those of convolutions in the plane, `[height, width, in, out]`. Axes: what they
count is a channel, all others are summed over. Kernels in Flax:

    Dense, Conv                              True, or (-1,)
    Conv in one or three dimensions          (-1,)
    query, key, value of attention           (-2, -1), of [in, heads, dim]
    its output projection                    (-1,), of [heads, dim, out]
    DenseGeneral                             as many axes as it has features
    Embed, and an output layer tied to it    (0,), of [num_embeddings, features]
    stacked layers (scan, vmap)              those of one layer, shifted, and (0, ...)

Layers of several kinds take a quantiser each, by `where` of `quantized.init`."""

# Parts of the paths of kernels that Flax lays out otherwise than [..., in, out].
_OF_ATTENTION = ("query", "key", "value", "out")
_ADVICE = (
    "per_channel=(-1,), or of_channels(..., (-1,)), is the last axis, (-2, -1) the "
    "last two, as of [in, heads, dim] in attention, (0,) the first, as of an "
    "embedding, (0, -1) the last one of stacked layers"
)


def channel_axes(
    weights: jax.Array, per_channel: Channels, path: str | None = None
) -> tuple[int, ...] | None:
    """The axes that a scale is for: all others than those of the channels; None: all.

    Args:
        weights: or anything with a shape.
        per_channel: see `Channels`.
        path: of the weights in their tree, if it is known.

    Raises:
        ValueError: True for weights whose layout does not say what their channels are;
            axes that they do not have, or that leave each weight a scale of its own.
    """
    if per_channel is False:
        return None
    shape, called = tuple(weights.shape), "" if path is None else f"{path}: "
    if per_channel is True:
        _require_layout(shape, called, path)
        return tuple(range(len(shape) - 1))
    is_axes = isinstance(per_channel, tuple) and all(
        isinstance(axis, int) and not isinstance(axis, bool) for axis in per_channel
    )
    if not is_axes or not per_channel:
        raise ValueError(
            f"{called}per_channel must be False, True or a tuple of axes, got "
            f"{per_channel!r}; {_ADVICE}."
        )
    if not all(-len(shape) <= axis < len(shape) for axis in per_channel):
        raise ValueError(
            f"{called}weights of the shape {shape} have no axes {per_channel}."
        )
    chosen = {axis % len(shape) for axis in per_channel}
    rest = tuple(axis for axis in range(len(shape)) if axis not in chosen)
    if not rest:
        raise ValueError(
            f"{called}with the channels {per_channel} each of the weights of the shape "
            f"{shape} would have a scale of its own. Leave them out of `where`, or "
            "name fewer axes."
        )
    return rest


def _require_layout(shape: tuple[int, ...], called: str, path: str | None) -> None:
    if len(shape) < 2:
        raise ValueError(
            f"{called}a scale for each output channel needs weights [..., out], got "
            f"the shape {shape}: each would have its own. Leave them out of `where`."
        )
    parts = () if path is None else path.split("/")
    is_otherwise = (
        "embedding" in parts[-1:]
        if len(shape) == 2
        else any(one in _OF_ATTENTION or "DenseGeneral" in one for one in parts)
    )
    if len(shape) not in (2, 4) or is_otherwise:
        raise ValueError(
            f"{called}which axes of the shape {shape} are output channels? Of dense "
            "layers [in, out] and convolutions [height, width, in, out] it is the "
            f"last; others must say: {_ADVICE}. Layers of several kinds take a "
            "quantiser each, by `where` of quantized.init."
        )
