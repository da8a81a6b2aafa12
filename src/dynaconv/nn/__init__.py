"""The operators of :mod:`dynaconv.functional` as `torch.nn` modules, with parameters and initialisation."""

from .lightconv import DynamicConv, LightConv

__all__ = ["DynamicConv", "LightConv"]
