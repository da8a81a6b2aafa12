"""The operators on two processes: DTensors sharded over the batch or the channels, and FSDP2.

`test_integration.py` runs it with torchrun; every process prints "equal" when all results agree with those of one process.
"""

import itertools

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

import dynaconv
from dynaconv.kernels import library, sharding

ARGUMENTS = {
    "static": ["x", "filters", "bias", "initial_state"],
    "dynamic": ["x", "filters", "static", "bias", "initial_state"],
    "lowrank": ["x", "codes", "basis", "static", "bias", "initial_state"],
}
OPERATORS = {"static": dynaconv.static_conv, "dynamic": dynaconv.dynamic_conv, "lowrank": dynaconv.lowrank_conv}


def tensors(kind, heads):
    torch.manual_seed(0)
    shapes = {
        "x": (4, 9, 12),
        "filters": (heads, 5) if kind == "static" else (4, 9, heads, 5),
        "codes": (4, 9, 3),
        "basis": (3, 12, 5),
        "static": (heads, 5),
        "bias": (12,),
        "initial_state": (4, 4, 12),
    }
    return {name: torch.randn(shapes[name]) for name in ARGUMENTS[kind]}


def check_dtensors(mesh):
    for (kind, names), heads in itertools.product(ARGUMENTS.items(), (4, 3)):
        inputs = tensors(kind, heads)
        expected = results_of(kind, {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()})
        for axis in (0, 1):
            dims = sharding.dims_of(library.OPERATORS[kind])
            leaves = {}
            for name, dim in zip(names, dims):
                split = dim[axis] is not None and inputs[name].shape[dim[axis]] % 2 == 0
                placement = Shard(dim[axis]) if split else Replicate()
                leaves[name] = distribute_tensor(inputs[name], mesh, [placement]).requires_grad_()
            actual = results_of(kind, leaves)
            # Three heads cannot be shared by two: their channels are gathered.
            assert (actual[0].placements == (Shard(dims[0][axis]),)) == (axis == 0 or heads == 4)
            for a, e in zip(actual, expected, strict=True):
                # Partial sums of the two processes are added in another order: 2.7e-6 apart where it is most.
                torch.testing.assert_close(a.full_tensor(), e, rtol=1e-5, atol=1e-5)


def results_of(kind, leaves):
    y = OPERATORS[kind](**leaves, activation="silu", residual=True)
    gradients = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    return [y.detach(), *gradients]


def check_fsdp(mesh):
    torch.manual_seed(0)
    layers = [
        dynaconv.nn.DynamicConv(16, 5, 4),
        dynaconv.nn.LightConv(16, 3, 4),
        dynaconv.nn.ShortConv(16, 1, bias=True),
        dynaconv.nn.DynamicShortConv(16, rank=3),
        dynaconv.nn.Mamba2(16, num_heads=4, head_dim=8, state_size=8),
    ]
    model, x = torch.nn.Sequential(*layers), torch.randn(4, 9, 16)
    expected_y = model(x)
    expected_y.square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    rank = dist.get_rank()
    y = model(x[2 * rank : 2 * rank + 2])
    torch.testing.assert_close(y, expected_y[2 * rank : 2 * rank + 2])
    y.square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name])


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    check_dtensors(mesh)
    check_fsdp(mesh)
    print("equal")
    dist.destroy_process_group()


main()
