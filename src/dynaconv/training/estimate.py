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


def peak_flops(device: torch.device) -> float | None:
    """Of :data:`ACCELERATORS`, for a device that is one of them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    name = name.replace("H200", "H100")  # the same processor, with more memory
    return next((peak for known, peak in ACCELERATORS.items() if known in name), None)


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


def estimate(
    model: nn.Module, batch: dict[str, Tensor], loss: Callable[[Any, Tensor], Tensor] | None, repeat: int = 1
) -> Estimate:
    """Count what a training step needs, without doing it.

    Activations are what the backward pass keeps, in the dtype of the parameters; with bf16 autocast they are about
    half as large.

    Args:
        model: on the meta device, or where what is computed depends on the data, on a CPU.
        batch: its keyword arguments, `labels` among them, on any device.
        loss: outputs and labels to a scalar; None: the model gives its own.
        repeat: the step has that many such batches beside each other.
    """
    device = next(model.parameters()).device
    arguments = {name: tensor.to(device) for name, tensor in batch.items()}
    labels = arguments["labels"] if loss is None else arguments.pop("labels")
    known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # by what identifies a storage as long as it is held

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model.train()(**arguments, use_cache=False)
        (outputs.loss if loss is None else loss(outputs, labels)).backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    activations = sum(storage.nbytes() for storage in kept.values())
    return Estimate(parameters, repeat * counter.get_total_flops(), repeat * activations)


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is or would be."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free
