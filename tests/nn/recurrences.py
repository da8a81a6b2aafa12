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
        gradients.append({
            name: torch.zeros_like(t).double() if t.grad is None else t.grad.double() for name, t in leaves.items()
        })  # fmt: skip
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
