"""The implementations of the operators. They know tensors and nothing of models.

- :mod:`.reference`: plain PyTorch, the definition; any device, dtype and order of derivative.
- :mod:`.cpu`: C++ kernels for CPU tensors.
- :mod:`.triton`: Triton kernels for NVIDIA and AMD GPUs.

The kernels are registered with PyTorch in :mod:`.library`.

Dims: B batch, S inputs, T outputs, D channels, H filters (D // H consecutive channels share one), W taps, C = D // H.
Every implementation takes inputs that `dynaconv.functional` has validated.
"""
