"""How a network's state settles: plug-in solvers for every phase of every rule.

    sweeps     each layer's minimiser in turn, in any order, or a part of the way there
    gradient   all layers down the energy, by any optax optimiser
    anderson   the synchronous map, accelerated

All of them see the network through its response: every layer's minimiser.
"""

from bilevel.energy.relaxations.anderson import anderson as anderson
from bilevel.energy.relaxations.base import Relaxation as Relaxation
from bilevel.energy.relaxations.base import Relaxed as Relaxed
from bilevel.energy.relaxations.gradient import gradient as gradient
from bilevel.energy.relaxations.sweeps import ORDERS as ORDERS
from bilevel.energy.relaxations.sweeps import damped_sweeps as damped_sweeps
from bilevel.energy.relaxations.sweeps import sweeps as sweeps

__all__ = [
    "ORDERS",
    "Relaxation",
    "Relaxed",
    "anderson",
    "damped_sweeps",
    "gradient",
    "sweeps",
]
