"""The operators of :mod:`dynaconv.functional` as `torch.nn` modules, with parameters and initialisation.

And the token mixers that have a short convolution in front: Mamba-2 and Gated DeltaNet.
"""

from .gated_deltanet import GatedDeltaNet, delta_rule_flops, gated_delta_rule
from .lightconv import DynamicConv, LightConv
from .mamba2 import Mamba2, scan_flops, state_space_scan
from .shortconv import DynamicShortConv, ShortConv
from .shortconv_group import ShortConvGroup
from .stream import Stream, StreamStates

__all__ = [
    "DynamicConv",
    "DynamicShortConv",
    "GatedDeltaNet",
    "LightConv",
    "Mamba2",
    "ShortConv",
    "ShortConvGroup",
    "Stream",
    "StreamStates",
    "delta_rule_flops",
    "gated_delta_rule",
    "scan_flops",
    "state_space_scan",
]
