"""Networks whose state is the argmin of an energy.

    hopfield     a chain with every connection in both directions
    lifted       a chain as Fenchel's inequality of each layer
    predictive   a chain as the errors of each layer's prediction
    resistive    resistors and diodes
    connected    any edges between any layers
    from_energy  an energy of your own

Any rule for energies trains any of them.
"""

from bilevel.energy.networks.base import EnergyNetwork as EnergyNetwork
from bilevel.energy.networks.connected import connected as connected
from bilevel.energy.networks.from_energy import from_energy as from_energy
from bilevel.energy.networks.hopfield import hopfield as hopfield
from bilevel.energy.networks.lifted import lifted as lifted
from bilevel.energy.networks.predictive import predictive as predictive
from bilevel.energy.networks.resistive import resistive as resistive

__all__ = [
    "EnergyNetwork",
    "connected",
    "from_energy",
    "hopfield",
    "lifted",
    "predictive",
    "resistive",
]
