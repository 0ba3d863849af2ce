"""What a learning rule is: a drop-in for `jax.value_and_grad` of a network's cost."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bilevel import compiled
from bilevel.trees import Tree

ValueAndGrad: TypeAlias = Callable[
    [Tree, jax.Array, jax.Array, jax.Array | None],
    tuple[tuple[jax.Array, "Aux"], Tree],
]


class Aux(NamedTuple):
    """What a rule tells besides the gradient; None where there is nothing to tell.

    Attributes:
        outputs: `[B, ...]`, those of the free phase or the forward pass.
        state: at the end of the free phase.
        free_residual: `[]`, root mean square over units and examples of what the last
            sweep of the free phase changed.
        nudged_residual: the same of the nudged phases, the largest.
        displacement: root mean square of the nudged phases' distance from the free one.
        converged: what is left of the way of each phase, estimated from its last
            residuals, and rounding are small against the displacement of every layer,
            so that it is the nudge's response that was measured. False for NaN, where
            a layer did not move, and where a phase had less than three sweeps.
        free_steps: `[]` int32, sweeps of the free phase (or steps of its solver); 0
            where the forward pass takes its place.
        nudged_steps: the same of the nudged phases, the most; of an adjoint, the steps
            of its linear solver.
        unbiased: whether the update is the gradient of the mean cost, in the limit of
            small nudges and of phases that have settled; `converged` says nothing of
            it. False: biased by construction, by weights that are not symmetric, by
            feedback that is no transpose, or because the rule descends something else.
            None: nobody has looked, as at an `EnergyNetwork` of your own.
    """

    outputs: jax.Array
    state: Any = None
    free_residual: jax.Array | None = None
    nudged_residual: jax.Array | None = None
    displacement: jax.Array | None = None
    converged: jax.Array | None = None
    free_steps: jax.Array | None = None
    nudged_steps: jax.Array | None = None
    unbiased: jax.Array | None = None


# Not a NamedTuple: `jax.jit(rule)` needs weak references, which tuples do not allow.
@dataclasses.dataclass(frozen=True)
class LearningRule:
    """A way to train a network; call it as `rule(params, inputs, targets, key)`.

    Attributes:
        name: of the rule.
        init: `(key, inputs [B, ...]) -> params`, feedback weights included where the
            rule has some (then `Aligned`).
        apply: `(params, inputs) -> outputs [B, ...]`.
        value_and_grad: `(params, inputs, targets, key) -> ((value, aux), grads)`: the
            mean cost over the batch, an `Aux` with the outputs, and an update direction
            in the tree of `params`, for any optax optimiser. Rules without chance
            ignore the key, which may be None.
        project: `params -> params`, to apply after each update: conductances are not
            negative.
    """

    name: str
    init: Callable[[jax.Array, jax.Array], Tree]
    apply: Callable[[Tree, jax.Array], jax.Array]
    value_and_grad: ValueAndGrad
    project: Callable[[Tree], Tree] = lambda params: params

    def __call__(
        self,
        params: Tree,
        inputs: jax.Array,
        targets: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, Aux], Tree]:
        """Returns `((value, aux), grads)`, as `value_and_grad` does.

        Without `jit` the program is compiled once, not in every call.
        """
        arrays = jax.tree.map(jnp.asarray, (params, inputs, targets))
        return compiled.call(self.value_and_grad, *arrays, key)


def said(value: bool | None) -> jax.Array | None:
    """What is known when a rule is made, as a field of `Aux`."""
    return None if value is None else jnp.asarray(value)


class Aligned(NamedTuple):
    """The parameters of a rule with feedback weights of its own.

    Attributes:
        forward: those of the network.
        feedback: what takes the place of its transposes. The gradient of feedback that
            is fixed is zero: keep weight decay away from it.
    """

    forward: Tree
    feedback: Tree
