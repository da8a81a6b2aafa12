"""Other libraries' short convolutions: their functions on our operators, their weights and states in our layouts.

One module per peer. Functions have the peer's names, signatures and layouts, so that changing an import switches to
dynaconv. `import_*` turns what the peer has into what we have, `export_*` the reverse.

- :mod:`~dynaconv.interop.causal_conv1d`: causal-conv1d; `causal_conv1d_fn`, `causal_conv1d_update`,
  `causal_conv1d_varlen_states`, and its states; in `causal_conv1d.cpp_functions` those that mamba_ssm imports.
- :mod:`~dynaconv.interop.vllm`: vLLM; its form of `causal_conv1d_fn` and `causal_conv1d_update`, on rows of a cache.
- :mod:`~dynaconv.interop.fla`: flash-linear-attention; `causal_conv1d`, `causal_conv1d_update`, the module
  `ShortConvolution`, and its states.
- :mod:`~dynaconv.interop.jet_nemotron`: Jet-Nemotron's `DynamicShortConvolution`, and its weights.
- :mod:`~dynaconv.interop.dynamic_conv1d`: the kernels of Sieberling et al. 2026; `headwise_dynamic_convolution`,
  `lowrank_dynamic_convolution`, and their filters, static filters and basis.
- :mod:`~dynaconv.interop.inkling2`: Inkling2 in Hugging Face transformers; `dynamic_short_convolution`, and the
  projection to its filters.
- :mod:`~dynaconv.interop.conv1d`: filters of `torch.nn.Conv1d`, and of subclasses such as fla's ShortConvolution.

Two things differ between peers. Tap order: the kernels of 2026 and Inkling2 count taps backwards in time, tap 0
multiplies the current token; in ours, as in causal-conv1d, fla and `nn.Conv1d`, the last tap does. States:
causal-conv1d and fla have [N, D, S], we have [N, S, D], all oldest first.

Dims: B batch, T tokens, D channels, H heads, W taps, R rank, N sequences, S inputs in a state. Gradients flow through
all converters and functions, except into buffers that are updated in place.
"""

from . import causal_conv1d, conv1d, dynamic_conv1d, fla, inkling2, jet_nemotron, vllm

__all__ = ["causal_conv1d", "conv1d", "dynamic_conv1d", "fla", "inkling2", "jet_nemotron", "vllm"]
