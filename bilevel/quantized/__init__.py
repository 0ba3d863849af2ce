"""Quantised training: weights of few levels as the argmin of an energy, and others.

    init, apply, project, advance, final, export      on a tree of parameters
    activation                                        in a model
    Export.save, load_export                          to a file and back

Argmins, pulled back by the core's nudged rule or in the dual: `adaste`,
`tanh_projection`, `softmax_projection`, `mirror_descent_tanh`,
`mirror_descent_softmax`, `proxquant`. Surrogate gradients: `ste`, `clipped_ste`,
`binary_connect`, `approx_sign`, `swish_sign`, `reste`, `bayesbinn`, `bop`, `xnor`,
`twn`, `dorefa`, `pact`, `lsq`, `lsq_plus`. For outer variables: `learned_scale`,
`learned_levels`, `mixture`.

    latent, state = init(q, params, where="kernel")
    loss = lambda latent: cost(model.apply(apply(q, state, latent), images), labels)
    updates, memory = optimizer.update(jax.grad(loss)(latent), memory, latent)
    latent = project(q, state, optax.apply_updates(latent, updates))
    state = advance(state)
"""

from bilevel.quantized import energies as energies
from bilevel.quantized import scales as scales
from bilevel.quantized.activation import activation as activation
from bilevel.quantized.export import Export as Export
from bilevel.quantized.export import Exported as Exported
from bilevel.quantized.export import export as export
from bilevel.quantized.learned_scale import LogScale as LogScale
from bilevel.quantized.learned_scale import learned_scale as learned_scale
from bilevel.quantized.mixture import Decision as Decision
from bilevel.quantized.mixture import Mixture as Mixture
from bilevel.quantized.mixture import decide as decide
from bilevel.quantized.mixture import expected_bytes as expected_bytes
from bilevel.quantized.mixture import mixture as mixture
from bilevel.quantized.quantizer import At as At
from bilevel.quantized.quantizer import Codes as Codes
from bilevel.quantized.quantizer import Quantizer as Quantizer
from bilevel.quantized.quantizers.adaste import adaste as adaste
from bilevel.quantized.quantizers.approx_sign import approx_sign as approx_sign
from bilevel.quantized.quantizers.bayesbinn import bayesbinn as bayesbinn
from bilevel.quantized.quantizers.bayesbinn import (
    bayesbinn_updates as bayesbinn_updates,
)
from bilevel.quantized.quantizers.binary_connect import binary_connect as binary_connect
from bilevel.quantized.quantizers.bop import bop as bop
from bilevel.quantized.quantizers.bop import bop_flips as bop_flips
from bilevel.quantized.quantizers.clipped_ste import clipped_ste as clipped_ste
from bilevel.quantized.quantizers.dorefa import dorefa as dorefa
from bilevel.quantized.quantizers.dorefa import dorefa_activation as dorefa_activation
from bilevel.quantized.quantizers.learned_levels import Codebook as Codebook
from bilevel.quantized.quantizers.learned_levels import learned_levels as learned_levels
from bilevel.quantized.quantizers.lsq import LearnedScale as LearnedScale
from bilevel.quantized.quantizers.lsq import lsq as lsq
from bilevel.quantized.quantizers.lsq_plus import ScaleAndOffset as ScaleAndOffset
from bilevel.quantized.quantizers.lsq_plus import lsq_plus as lsq_plus
from bilevel.quantized.quantizers.mirror_descent_softmax import (
    mirror_descent_softmax as mirror_descent_softmax,
)
from bilevel.quantized.quantizers.mirror_descent_tanh import (
    mirror_descent_tanh as mirror_descent_tanh,
)
from bilevel.quantized.quantizers.pact import Clip as Clip
from bilevel.quantized.quantizers.pact import pact as pact
from bilevel.quantized.quantizers.proxquant import proxquant as proxquant
from bilevel.quantized.quantizers.reste import reste as reste
from bilevel.quantized.quantizers.reste import reste_schedule as reste_schedule
from bilevel.quantized.quantizers.softmax_projection import (
    softmax_projection as softmax_projection,
)
from bilevel.quantized.quantizers.ste import ste as ste
from bilevel.quantized.quantizers.swish_sign import swish_sign as swish_sign
from bilevel.quantized.quantizers.tanh_projection import (
    tanh_projection as tanh_projection,
)
from bilevel.quantized.quantizers.twn import twn as twn
from bilevel.quantized.quantizers.xnor import xnor as xnor
from bilevel.quantized.stored import load_export as load_export
from bilevel.quantized.tree import State as State
from bilevel.quantized.tree import advance as advance
from bilevel.quantized.tree import apply as apply
from bilevel.quantized.tree import final as final
from bilevel.quantized.tree import init as init
from bilevel.quantized.tree import labels as labels
from bilevel.quantized.tree import project as project

__all__ = [
    "At",
    "Clip",
    "Codebook",
    "Codes",
    "Decision",
    "Export",
    "Exported",
    "LearnedScale",
    "LogScale",
    "Mixture",
    "Quantizer",
    "ScaleAndOffset",
    "State",
    "activation",
    "adaste",
    "advance",
    "apply",
    "approx_sign",
    "bayesbinn",
    "bayesbinn_updates",
    "binary_connect",
    "bop",
    "bop_flips",
    "clipped_ste",
    "decide",
    "dorefa",
    "dorefa_activation",
    "energies",
    "expected_bytes",
    "export",
    "final",
    "init",
    "labels",
    "learned_levels",
    "learned_scale",
    "load_export",
    "lsq",
    "lsq_plus",
    "mirror_descent_softmax",
    "mirror_descent_tanh",
    "mixture",
    "pact",
    "project",
    "proxquant",
    "reste",
    "reste_schedule",
    "scales",
    "softmax_projection",
    "ste",
    "swish_sign",
    "tanh_projection",
    "twn",
    "xnor",
]
