"""A language model in training on two processes with FSDP2, each with half of every batch.

`test_distributed.py` runs it with torchrun in a folder that has the rows, and compares with one process.
"""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh

from dynaconv.models import DynaConvConfig, DynaConvForCausalLM


def make_model() -> DynaConvForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return DynaConvForCausalLM(DynaConvConfig(**sizes, num_attention_heads=4, placement="all_linear", conv_rank=3))


def train(model, batches) -> list[float]:
    """The loss of every batch, before its update."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for rows in batches:
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def main() -> None:
    dist.init_process_group("gloo")
    model, mesh, rank = make_model(), init_device_mesh("cpu", (2,)), dist.get_rank()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = torch.stack(train(model, torch.load("rows.pt").chunk(2, dim=1)[rank]))
    dist.all_reduce(losses)
    if rank == 0:
        Path("losses.json").write_text(json.dumps((losses / 2).tolist()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
