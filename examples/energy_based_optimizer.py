"""The optimiser of `energy_based.py`: a rate for each layer, and what may decay."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from examples.energy_based_rules import Config

LEARNED_FEEDBACK = ("difference_target_propagation", "kolen_pollack")


def is_feedback(path: Any) -> bool:
    """Whether a leaf is a feedback weight of a rule that has some of its own."""
    return bool(path) and getattr(path[0], "name", None) == "feedback"


def optimizer_of(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimiser, with a rate for each layer; feedback has that of its block."""
    own = config.optimizer
    num_layers = len((*config.model.channels, *config.model.hidden)) + 1
    if len(own.learning_rates) not in (1, num_layers):
        raise ValueError(
            f"optimizer.learning_rates: expected one, or one for each of {num_layers} "
            f"layers, got {own.learning_rates}."
        )
    total = config.num_epochs * steps_per_epoch
    first = round(own.warm_up * total)
    schedules: dict[str, Callable[[Any], Any]] = {
        "constant": lambda step: 1.0,
        "cosine": optax.cosine_decay_schedule(1.0, max(total - first, 1)),
        "exponential": lambda step: 0.99 ** (step / steps_per_epoch),
    }
    rising = optax.linear_schedule(0.0, 1.0, max(first, 1))
    factor = optax.join_schedules([rising, schedules[own.schedule]], [first])

    def by_layer(updates: Any, params: Any) -> Any:
        del params

        def scaled(path: Any, update: jax.Array) -> jax.Array:
            places = [one.idx for one in path if hasattr(one, "idx")]
            # The feedback of a list stands for the transposes of all but the first.
            layer = (places[0] if places else 0) + is_feedback(path)
            layer = min(layer, len(own.learning_rates) - 1)
            return update * own.learning_rates[layer]

        return jax.tree_util.tree_map_with_path(scaled, updates)

    def decays(params: Any) -> Any:
        """All but feedback that is fixed, which would fade."""
        is_learned = config.learning.rule in LEARNED_FEEDBACK
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: is_learned or not is_feedback(path), params
        )

    direction = {
        "sgd": optax.trace(own.momentum) if own.momentum else optax.identity(),
        "adam": optax.scale_by_adam(),
        "adamw": optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(own.weight_decay, mask=decays),
        ),
    }[own.name]
    clip = optax.clip_by_global_norm(own.clip) if own.clip else optax.identity()
    return optax.chain(
        clip, direction, optax.stateless(by_layer), optax.scale_by_learning_rate(factor)
    )
