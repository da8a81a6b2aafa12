"""Short convolutions put into other people's Hugging Face models, in place.

Source: *Dynamic Short Convolutions Improve Transformers* (Sieberling et al., 2026).
"""

from .graft import graft, ungraft
from .loading import from_pretrained

__all__ = ["from_pretrained", "graft", "ungraft"]
