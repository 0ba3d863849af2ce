"""What a learning rule is: a drop-in for `jax.value_and_grad` of a network's cost."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from bilevel.trees import Tree

ValueAndGrad: TypeAlias = Callable[
    [Tree, jax.Array, jax.Array, jax.Array | None],
    tuple[tuple[jax.Array, Any], Tree],
]


class LearningRule(NamedTuple):
    """A way to train a network; call it as `rule(params, inputs, targets, key)`.

    Attributes:
        name: of the rule.
        init: `(key, inputs [B, ...]) -> params`, feedback weights included where the
            rule has some (then `Aligned`).
        apply: `(params, inputs) -> outputs [B, ...]`.
        value_and_grad: `(params, inputs, targets, key) -> ((value, outputs), grads)`:
            the mean cost over the batch, the outputs, and an update direction in the
            tree of `params`, for any optax optimiser. Rules without chance ignore the
            key, which may be None.
    """

    name: str
    init: Callable[[jax.Array, jax.Array], Tree]
    apply: Callable[[Tree, jax.Array], jax.Array]
    value_and_grad: ValueAndGrad

    def __call__(
        self,
        params: Tree,
        inputs: jax.Array,
        targets: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, Any], Tree]:
        """Returns `((value, outputs), grads)`, as `value_and_grad` does."""
        return self.value_and_grad(params, inputs, targets, key)


class Aligned(NamedTuple):
    """The parameters of a rule with feedback weights of its own.

    Attributes:
        forward: those of the network.
        feedback: what takes the place of its transposes. The gradient of feedback that
            is fixed is zero: keep weight decay away from it.
    """

    forward: Tree
    feedback: Tree
