"""Which implementation serves a call."""

import functools
import logging
from typing import cast

import torch
from torch import Tensor

from . import Implementation, Tensors, cpu, reference, triton

_log = logging.getLogger("dynaconv")

IMPLEMENTATIONS = {
    "reference": cast("Implementation", reference),
    "cpu": cast("Implementation", cpu),
    "triton": cast("Implementation", triton),
}
# Of the devices that have kernels; all others take the reference.
_FIRST = {"cpu": "cpu", "meta": "cpu", "cuda": "triton"}


def choose(forced: str | None, x: Tensor, others: Tensors) -> str:
    """The implementation `forced`, or else the fastest that serves the tensors; the reference in an export to ONNX.

    Raises:
        ValueError: the one that is forced cannot serve them.
    """
    usual = _FIRST.get(x.device.type, "reference")
    if torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export():
        usual = "reference"  # whose operators ONNX has
    name = forced or usual
    reason = IMPLEMENTATIONS[name].refuses((x, *others))
    if reason is None:
        return name
    if forced:
        raise ValueError(f'backend("{name}") cannot serve this call: {reason}')
    if not torch.compiler.is_compiling():
        _log_once(name, reason)
    return "reference"


@functools.cache
def _log_once(name: str, reason: str) -> None:
    _log.warning('"%s" cannot serve a call, plain PyTorch takes its place, which is slower: %s', name, reason)
