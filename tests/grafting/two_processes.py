"""A grafted Llama in training on two processes, with accelerate's DDP and with FSDP2.

`test_ecosystem.py` runs it with torchrun in a folder that has the model and the rows, and compares with one process.
"""

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh

import dynaconv


def train(model, optimizer, batches, backward=torch.Tensor.backward):
    for rows in batches:
        backward(model(input_ids=rows, labels=rows).loss)
        optimizer.step()
        optimizer.zero_grad()


def with_accelerate(rows):
    accelerator = Accelerator(cpu=True)
    model = dynaconv.from_pretrained("model").train()
    optimizer, batches = torch.optim.SGD(model.parameters(), lr=0.5), torch.utils.data.DataLoader(rows, batch_size=2)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    train(model, optimizer, batches, accelerator.backward)
    model = accelerator.unwrap_model(model)
    model.save_pretrained("accelerate", is_main_process=accelerator.is_main_process)


def with_fsdp(rows):
    model, mesh, rank = dynaconv.from_pretrained("model").train(), init_device_mesh("cpu", (2,)), dist.get_rank()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, torch.optim.SGD(model.parameters(), lr=0.5), rows.view(-1, 2, 2, rows.shape[1])[:, rank])
    weights = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    if rank == 0:
        torch.save(weights, "fsdp2.pt")


def main():
    dist.init_process_group("gloo")
    rows = torch.load("rows.pt")
    with_accelerate(rows)
    with_fsdp(rows)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
