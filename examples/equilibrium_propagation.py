"""Trains a deep Hopfield network on digits by equilibrium propagation.

The state of the network is an argmin, s*(params) = argmin over s of E(s, params, x),
relaxed by sweeps over the odd and the even layers; the gradient of the cost of that
state comes from two more relaxations, nudged down and up, and not from
back-propagation (Scellier and Bengio 2017, Laborieux et al. 2021).

    python examples/equilibrium_propagation.py --seed=0

prints a test accuracy of about 97.5 %, after 30 s on two cores.
"""

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import bilevel
from bilevel import hypergradients, inner_solvers
from bilevel.datasets import load_digits

SEED = flags.DEFINE_integer("seed", 0, "Of the split, the weights and the batches.")
NUM_EPOCHS = flags.DEFINE_integer("num_epochs", 30, "Passes over the training set.")
SIZES, BATCH_SIZE = (64, 128, 10), 16


def energy(state, params, inputs):
    """The sum over layers and examples of |s|^2 / 2 - <s, W s_below + b>."""
    below = (inputs, *state[:-1])
    drive = [s @ w + b for s, (w, b) in zip(below, params, strict=True)]
    pairs = zip(state, drive, strict=True)
    return sum(jnp.sum(s**2) / 2 - jnp.sum(s * d) for s, d in pairs)


relax = bilevel.argmin(
    energy,
    inner_solvers.block_coordinate(
        [(1,), (0,)], lambda s, g: jnp.clip(s - g, 0, 1), max_steps=15, rtol=1e-3
    ),
    hypergradients.nudged(0.2, normalise=False),
    on_untrustworthy="ignore",
)


def outputs(params, inputs):
    state = [jnp.zeros((len(inputs), size)) for size in SIZES[1:]]
    return relax(state, params, inputs)[0][-1]


def cost(params, batch):
    return jnp.sum((outputs(params, batch.inputs) - jax.nn.one_hot(batch.labels, 10)) ** 2) / 2
