"""New tensors of a test of an implementation are where it computes."""

import contextlib

import pytest
import torch

from .backends import Backend


@pytest.fixture(autouse=True)
def placed(request):
    backend = request.node.callspec.params.get("backend") if hasattr(request.node, "callspec") else None
    elsewhere = isinstance(backend, Backend) and backend.device != "cpu"
    with torch.device(backend.device) if elsewhere else contextlib.nullcontext():
        yield
