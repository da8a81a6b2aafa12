"""What a training run needs, counted on tensors without data."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

ACCELERATORS = {"V100": 125e12, "A100": 312e12, "H100": 989e12}
"""Peak FLOP/s of matrix products in half precision, without sparsity, as their maker states them."""
UTILISATION = 0.3  # of that peak, which training reaches where nothing is known


@dataclass(frozen=True)
class Estimate:
    """What one batch needs: `flops` forward and backward, `activations` in bytes; `parameters` of the model."""

    parameters: int
    flops: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes on a device: weights, gradients and Adam's two moments in fp32, and the activations."""
        return 16 * self.parameters + self.activations

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: weights and Adam's moments."""
        return 12 * self.parameters


def estimate(model: nn.Module, batch: dict[str, Tensor], loss: Callable[[Any, Tensor], Tensor]) -> Estimate:
    """Count what a training step needs, without doing it.

    Activations are what the backward pass keeps, in the dtype of the parameters; with bf16 autocast they are about
    half as large.

    Args:
        model: on the meta device.
        batch: its keyword arguments, `labels` among them, on any device.
        loss: outputs and labels to a scalar.
    """
    arguments = {name: tensor.to("meta") for name, tensor in batch.items()}
    labels = arguments.pop("labels")
    known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # by what identifies a storage as long as it is held

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model.train()(**arguments, use_cache=False), labels).backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Estimate(parameters, counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values()))


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is or would be."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free
