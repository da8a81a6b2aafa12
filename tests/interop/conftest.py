"""Every test of a peer runs on the reference and on the CPU kernels, with the same random numbers."""

import pytest
import torch

import dynaconv


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    with dynaconv.backend(request.param):
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
