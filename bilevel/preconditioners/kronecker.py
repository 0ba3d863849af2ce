"""Kronecker factors of the Hessian of linear layers (K-FAC, of the Hessian itself)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import checks, trees
from bilevel.derivatives import Oracle
from bilevel.inner_problem import Parameters, Preconditioner
from bilevel.iteration import iterate
from bilevel.preconditioners.layers import Taps, tap
from bilevel.trees import Tree


class Factors(NamedTuple):
    """Of one matrix w: H is about D^1/2 (A x B + I) D^1/2, A and B by eigenvectors.

    Attributes:
        vectors: of the factors over the two axes, `[n, n]` and `[m, m]`.
        values: `[n, m]`, one over the eigenvalues of A x B + I.
        scales: `[n, m]`, D^-1/2.
    """

    vectors: tuple[jax.Array, jax.Array]
    values: jax.Array
    scales: jax.Array


class KroneckerState(NamedTuple):
    """What is known of each leaf of w, in the order of `jax.tree.leaves`.

    Attributes:
        factors: of matrices; None for other leaves.
        diagonals: of other leaves, one over the diagonal of H; None for matrices.
    """

    factors: list[Factors | None]
    diagonals: list[jax.Array | None]


def kronecker(
    *,
    num_probes: int = 2,
    damping: float = 1e-4,
    max_size: int = 2048,
    every: int = 1,
) -> Preconditioner:
    """For every matrix of w the inverse of A x B + D, from one look at the layers.

    A layer computes z_i = a_i w for rows a_i; its block of the Hessian is the sum of
    (a_i a_i') x (d2G/dz_i2), about A x B with A the mean of a_i a_i' and B the sum of
    d2G/dz_i2.  B is measured, not modelled: for random signs v the mean of
    (d2G/dz2 v)_i v_i' is B, by one Hessian product for all layers, whatever the loss.
    What G does with w outside of the layers (a penalty) is measured by the same
    product, as a diagonal; D is its best outer product of a row and a column, so that
    a penalty for each input, each output, or each layer is exact.

    The layers are found in the program of the inner objective (see `layers`): products
    of a matrix of w with anything, in linen, nnx or plain JAX.  Of biases, kernels of
    convolutions, matrices inside of loops, and matrices with a side above `max_size`,
    the diagonal is used.

    Args:
        num_probes: random vectors; the noise is about one over the root of the number
            of rows and of probes.
        damping: what D is at least, relative to the mean eigenvalue of A x B.
        max_size: of the side of a matrix whose factors are kept.
        every: it is refreshed at every so many solutions of an outer loop.

    Returns:
        A `Preconditioner`; its state is, for a matrix of n x m, n^2 + m^2 + 2 n m
        numbers.  Cost of a refresh: 3 g + 3 g a probe, and for every matrix its factors
        (n^2 a row) and their eigenvectors, O(n^3 + m^3); of an application 4 n m (n +
        m) operations.

    Raises:
        ValueError: an argument is out of range.

    Source: Martens and Grosse 2015, arXiv:1503.05671, equations 1 and 16; with the
    curvature of a layer's outputs in place of the Fisher matrix.

    Example:
        >>> preconditioner = kronecker(every=10)
    """
    num_probes = checks.count("kronecker: num_probes", num_probes, 1)
    max_size = checks.count("kronecker: max_size", max_size, 1)
    if not damping > 0:
        raise ValueError(f"kronecker: damping must be positive, got {damping}.")
    return Preconditioner(
        name="kronecker",
        init=partial(_init, max_size),
        refresh=partial(_refresh, num_probes, damping, max_size),
        apply=_apply,
        every=checks.count("kronecker: every", every, 1),
    )


def _is_factored(x: Any, max_size: int) -> bool:
    return x.ndim == 2 and 0 < min(x.shape) and max(x.shape) <= max_size


def _init(max_size: int, inner: Tree) -> KroneckerState:
    factors, diagonals = [], []
    for x in jax.tree.leaves(inner):
        is_factored = _is_factored(x, max_size)
        ones = jnp.ones(x.shape, x.dtype)
        eyes = [jnp.eye(n, dtype=x.dtype) for n in x.shape] if is_factored else []
        factors.append(Factors((eyes[0], eyes[1]), ones, ones) if is_factored else None)
        diagonals.append(None if is_factored else ones)
    return KroneckerState(factors, diagonals)


class _Curvature(NamedTuple):
    outputs: list[jax.Array]  # B of every layer, symmetrised
    direct: Tree  # the diagonal of what is no layer


def _measured(taps: Taps, inner: Tree, num_probes: int) -> _Curvature:
    """B of every layer and the diagonal beside the layers, by Hessian products."""
    zeros = [jnp.zeros(s.shape, s.dtype) for s in taps.shapes]
    point = (zeros, inner)
    product = jax.linearize(lambda both: jax.grad(taps.value, (0, 1))(*both), point)[1]

    def outer(image: jax.Array, probe: jax.Array, axis: int) -> jax.Array:
        rows = [jnp.moveaxis(x, axis, -1) for x in (image, probe)]
        a, b = (x.reshape(-1, x.shape[-1]) for x in rows)
        total = a.T @ b
        return (total + total.T) / 2

    def look(probe: jax.Array) -> tuple[jax.Array, _Curvature]:
        signs = trees.random_signs(jax.random.fold_in(jax.random.key(0), probe), point)
        image = product(signs)
        axes = [layer.output_axis for layer in taps.layers]
        outputs = [
            outer(i, s, axis)
            for i, s, axis in zip(image[0], signs[0], axes, strict=True)
        ]
        direct = jax.tree.map(jnp.multiply, image[1], signs[1])
        return probe + 1, _Curvature(outputs, direct)

    start = jnp.zeros((), jnp.int32)
    _, seen = iterate(look, start, num_steps=num_probes, history=True)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), seen)


def _refresh(
    num_probes: int,
    damping: float,
    max_size: int,
    oracle: Oracle,
    inner: Tree,
    parameters: Parameters,
    state: KroneckerState,
) -> KroneckerState:
    del state
    leaves = jax.tree.leaves(inner)
    wanted = [_is_factored(x, max_size) for x in leaves]
    taps = tap(oracle, inner, parameters, wanted)
    curvature = _measured(taps, inner, num_probes)
    direct = [jnp.abs(x) for x in jax.tree.leaves(curvature.direct)]
    factors, diagonals = [], []
    for i, x in enumerate(leaves):
        if not wanted[i]:
            factors.append(None)
            diagonals.append(_inverse_diagonal(direct[i]))
            continue
        sides = _sides(taps, curvature, i, x)
        factors.append(_factors(sides, direct[i], damping))
        diagonals.append(None)
    return KroneckerState(factors, diagonals)


def _inverse_diagonal(entries: jax.Array) -> jax.Array:
    """One over them; entries far below the largest are noise."""
    floor = 1e-3 * jnp.max(entries, initial=0)
    entries = jnp.maximum(entries, floor)
    return jnp.where(entries > 0, 1 / jnp.where(entries > 0, entries, 1), 1)


def _sides(
    taps: Taps, curvature: _Curvature, leaf: int, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The factors over the two axes of a leaf.

    Where the leaf is the matrix of several layers, B is summed over them, and A is
    their mean: exact if their inputs are alike.
    """
    sides = [jnp.zeros((n, n), x.dtype) for n in x.shape]
    uses = sum(layer.leaf == leaf for layer in taps.layers)
    for layer, outputs in zip(taps.layers, curvature.outputs, strict=True):
        if layer.leaf == leaf:
            rows = layer.inputs.astype(x.dtype)
            gram = rows.T @ rows / max(len(rows), 1)
            sides[layer.input_axis] += gram / uses
            sides[1 - layer.input_axis] += outputs.astype(x.dtype)
    return sides[0], sides[1]


def _factors(
    sides: tuple[jax.Array, jax.Array], direct: jax.Array, damping: float
) -> Factors:
    dtype = direct.dtype
    wide = jnp.promote_types(dtype, jnp.float32)  # LAPACK knows nothing narrower
    sides = (sides[0].astype(wide), sides[1].astype(wide))
    direct = direct.astype(wide)
    mean = [jnp.trace(s) / len(s) for s in sides]
    least = damping * jnp.abs(mean[0] * mean[1])
    least = jnp.where(least > 0, least, jnp.where(jnp.any(direct > 0), 0, 1))
    # Of a row times a column; exact for a penalty of that form.
    rows, columns = jnp.mean(direct, axis=1), jnp.mean(direct, axis=0)
    whole = jnp.mean(direct)
    rows = jnp.maximum(rows, least)
    columns = columns / jnp.where(whole > 0, whole, 1)
    columns = jnp.where(whole > 0, jnp.maximum(columns, 1e-3), 1)
    rows = jnp.maximum(rows, 1e-6 * jnp.max(rows))
    weights = [1 / jnp.sqrt(rows), 1 / jnp.sqrt(columns)]
    values, vectors = [], []
    for side, weight in zip(sides, weights, strict=True):
        value, vector = jnp.linalg.eigh(weight[:, None] * side * weight[None])
        values.append(jnp.abs(value))
        vectors.append(vector)
    product = values[0][:, None] * values[1][None]
    factors = Factors(
        vectors=(vectors[0], vectors[1]),
        values=1 / (product + 1),
        scales=weights[0][:, None] * weights[1][None],
    )
    return jax.tree.map(lambda a: a.astype(dtype), factors)


def _apply(state: KroneckerState, r: Tree) -> Tree:
    leaves, treedef = jax.tree.flatten(r)
    out = []
    for x, factors, diagonal in zip(
        leaves, state.factors, state.diagonals, strict=True
    ):
        if factors is None:
            assert diagonal is not None
            out.append(diagonal * x)
            continue
        left, right = factors.vectors
        inside = left.T @ (factors.scales * x) @ right
        out.append(factors.scales * (left @ (factors.values * inside) @ right.T))
    return treedef.unflatten(out)
