"""Triton kernels, for NVIDIA and AMD GPUs; on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1)."""
