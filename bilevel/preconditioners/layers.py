"""Finds where an objective multiplies by its matrices: the linear layers of any model.

A program is a list of operations.  A layer is a product (`dot_general`) of which one
operand is a leaf of w, as it is or transposed or cast, and the other one the layer's
inputs.  So layers of linen, of nnx and of one's own hand look alike.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import core
from jax.extend import core as extended

from bilevel.derivatives import Oracle
from bilevel.trees import Tree


class Layer(NamedTuple):
    """One product with a matrix of w.

    Attributes:
        leaf: which leaf of w, in the order of `jax.tree.leaves`.
        inputs: `[n, in]`, the rows that are multiplied.
        input_axis: the axis of the leaf that is summed over, 0 or 1.
        output_axis: the axis of the product that is the layer's outputs.
    """

    leaf: int
    inputs: jax.Array
    input_axis: int
    output_axis: int


class _Alias(NamedTuple):
    """A variable that is a leaf of w, with its axes in another order."""

    leaf: int
    axes: tuple[int, ...]


class Taps(NamedTuple):
    """G with its matrices held fixed, and a shift of the outputs of every layer.

    Attributes:
        value: `(shifts, direct) -> []`: G where every layer's outputs are shifted, and
            w outside of layers is `direct`.
        shapes: of the shifts, one for each layer.
        layers: where they are.
    """

    value: Any
    shapes: list[jax.ShapeDtypeStruct]
    layers: list[Layer]


def tap(oracle: Oracle, inner: Tree, parameters: Any, wanted: list[bool]) -> Taps:
    """Finds the layers of the inner objective, and evaluates their inputs at w.

    Args:
        oracle: of the inner problem.
        inner: w.
        parameters: of the inner problem.
        wanted: for every leaf of w, whether it may be the matrix of a layer; what else
            it is used for stays direct.
    """
    leaves, treedef = jax.tree.flatten(inner)
    closed = jax.make_jaxpr(
        lambda *flat: oracle.value(treedef.unflatten(flat), parameters)
    )(*leaves)

    def value(shifts: list[jax.Array], direct: Tree) -> jax.Array:
        run = _Run(leaves, wanted, shifts)
        return run(closed.jaxpr, closed.consts, jax.tree.leaves(direct))

    run = _Run(leaves, wanted, None)
    run(closed.jaxpr, closed.consts, leaves)
    return Taps(value, run.shapes, run.layers)


class _Run:
    """Evaluates a program once, with shifts, or collects its layers without them."""

    def __init__(
        self,
        leaves: list[jax.Array],
        wanted: list[bool],
        shifts: list[jax.Array] | None,
    ) -> None:
        self.leaves = leaves
        self.wanted = wanted
        self.shifts = shifts
        self.shapes: list[jax.ShapeDtypeStruct] = []
        self.layers: list[Layer] = []
        self.count = 0

    def __call__(self, jaxpr: Any, consts: list[Any], direct: list[Any]) -> Any:
        aliases = [
            _Alias(i, tuple(range(x.ndim))) if is_wanted else None
            for i, (x, is_wanted) in enumerate(
                zip(self.leaves, self.wanted, strict=True)
            )
        ]
        return self._evaluate(jaxpr, consts, direct, aliases)[0]

    def _evaluate(
        self, jaxpr: Any, consts: Any, values: Any, aliases: list[_Alias | None]
    ) -> list[Any]:
        environment = dict(zip(jaxpr.constvars, consts, strict=True))
        environment.update(zip(jaxpr.invars, values, strict=True))
        known = {
            v: a for v, a in zip(jaxpr.invars, aliases, strict=True) if a is not None
        }

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, extended.Literal) else environment[atom]

        def alias(atom: Any) -> _Alias | None:
            return None if isinstance(atom, extended.Literal) else known.get(atom)

        for equation in jaxpr.eqns:
            of = [alias(atom) for atom in equation.invars]
            arguments = [read(atom) for atom in equation.invars]
            name = equation.primitive.name
            if name == "transpose" and of[0] is not None:
                axes = tuple(of[0].axes[i] for i in equation.params["permutation"])
                known[equation.outvars[0]] = _Alias(of[0].leaf, axes)
            elif name in ("convert_element_type", "copy") and of[0] is not None:
                known[equation.outvars[0]] = of[0]
            if any(a is not None for a in of) and name == "dot_general":
                out = self._product(jaxpr, equation, arguments, of)
                if out is not None:
                    environment[equation.outvars[0]] = out
                    continue
            body = _body(equation) if any(a is not None for a in of) else None
            if body is not None:
                out = self._evaluate(body.jaxpr, body.consts, arguments, of)
            else:
                out = _bind(jaxpr, equation, arguments)
            environment.update(zip(equation.outvars, out, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _product(self, jaxpr: Any, equation: Any, arguments: list[Any], of: Any) -> Any:
        """The product with the fixed matrix, shifted; None if it is no layer."""
        (contracted, batched) = equation.params["dimension_numbers"]
        side = 1 if of[1] is not None else 0
        other, alias = arguments[1 - side], of[side]
        axes = contracted[side]
        if of[1 - side] is not None or len(axes) != 1 or batched[0]:
            return None
        matrix = jnp.transpose(self.leaves[alias.leaf], alias.axes)
        matrix = matrix.astype(arguments[side].dtype)
        operands = (other, matrix) if side == 1 else (matrix, other)
        (out,) = _bind(jaxpr, equation, list(operands))
        if self.shifts is None:
            inputs = jnp.moveaxis(other, contracted[1 - side][0], -1)
            layer = Layer(
                alias.leaf,
                inputs.reshape(-1, inputs.shape[-1]),
                alias.axes[axes[0]],
                out.ndim - 1 if side == 1 else 0,
            )
            self.layers.append(layer)
            self.shapes.append(jax.ShapeDtypeStruct(out.shape, out.dtype))
        else:
            out = out + self.shifts[self.count]
        self.count += 1
        return out


def _bind(jaxpr: Any, equation: Any, arguments: list[Any]) -> list[Any]:
    """One operation, as a program of its own."""
    values = {
        atom: x
        for atom, x in zip(equation.invars, arguments, strict=True)
        if not isinstance(atom, extended.Literal)
    }
    alone = jaxpr.replace(
        constvars=[], invars=list(values), outvars=equation.outvars, eqns=[equation]
    )
    return list(core.eval_jaxpr(alone, [], *values.values()))


_CALLS = ("pjit", "jit", "closed_call", "core_call", "remat", "checkpoint")


def _body(equation: Any) -> Any:
    """The program inside of a call, closed; None of anything else (a loop, say)."""
    name = equation.primitive.name
    if name not in _CALLS and not name.startswith("custom_"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = equation.params.get(name)
        if body is not None:
            is_closed = hasattr(body, "consts")
            return body if is_closed else extended.ClosedJaxpr(body, ())
    return None
