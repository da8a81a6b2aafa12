"""Numba kernels for CPU tensors: Python source, compiled on the first call and cached on disk."""
