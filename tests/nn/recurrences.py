"""What the tests of the recurrences share."""

import sys
import types

import torch

from dynaconv.nn import recurrence


def compare_gradients(function, oracle, tensors, rtol=1e-4, atol=1e-4):
    """Both take tensors by name and return two; these and all gradients of a random sum of both agree."""
    torch.manual_seed(1)
    results, gradients, weights = [], [], None
    for call, dtype in ((oracle, torch.float64), (function, torch.float32)):
        leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items()}
        outputs = call(**leaves)
        weights = [torch.randn(y.shape, dtype=torch.float64) for y in outputs] if weights is None else weights
        sum((y * weight).sum() for y, weight in zip(outputs, weights)).backward()
        results.append([y.double() for y in outputs])
        gradients.append(
            {name: torch.zeros_like(t).double() if t.grad is None else t.grad.double() for name, t in leaves.items()}
        )
    torch.testing.assert_close(results[1], results[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=rtol, atol=atol)


def install_fla(monkeypatch, module, name, kernel):
    """`fla.ops.module.name` is `kernel`, and tensors pass for CUDA's; returns the keywords of every call."""
    calls = []

    def record(**keywords):
        calls.append(keywords)
        return kernel(**keywords)

    package = types.ModuleType(f"fla.ops.{module}")
    setattr(package, name, record)
    for path, content in {"fla": types.ModuleType("fla"), "fla.ops": types.ModuleType("fla.ops")}.items():
        monkeypatch.setitem(sys.modules, path, content)
    monkeypatch.setitem(sys.modules, f"fla.ops.{module}", package)
    monkeypatch.setattr(recurrence, "_on_cuda", lambda x: True)
    recurrence._import_fla.cache_clear()
    return calls


def check_kernel_of_fla(monkeypatch, function, arguments, module, name, kernel, packed, rtol, atol):
    """16-bit tensors take the kernel, packed ones as one row, and give what the function gives; fp32 does not."""
    tensors = {key: tensor.bfloat16() for key, tensor in arguments(2, 20).items()}
    keywords = {"cu_seqlens": torch.tensor([0, 7, 20, 20, 29, 40], dtype=torch.int32)} if packed else {}
    if packed:
        tensors["initial_state"] = None
    expected = function(**tensors, **keywords)
    calls = install_fla(monkeypatch, module, name, kernel)
    torch.testing.assert_close(function(**tensors, **keywords), expected, rtol=rtol, atol=atol)
    for key in ("q", "k"):
        assert [(call[key].shape, call[key].dtype, call["g"].dtype) for call in calls] == [
            (torch.Size((1, 40, 4, 5) if packed else (2, 20, 4, 5)), torch.bfloat16, torch.float32)
        ]
    function(**{key: tensor.float() for key, tensor in arguments(2, 20).items()})
    assert len(calls) == 1
