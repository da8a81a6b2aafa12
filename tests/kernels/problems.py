"""Random calls of the operators, with every keyword, and how accurate their results have to be."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import dynaconv

OPERATORS = {"static": dynaconv.static_conv, "dynamic": dynaconv.dynamic_conv, "lowrank": dynaconv.lowrank_conv}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
]
LAYOUTS = ["contiguous", "sliced", "transposed", "expanded", "repeated"]
EXTRAS = ["static", "bias", "silu", "residual", "scale", "state", "packed", "softmax"]


@dataclass
class Problem:
    """A call of an operator. `dtypes` are those of x and of every other tensor; `layouts` as well."""

    kind: str
    batch: int = 2
    length: int = 40
    heads: int = 3
    head_size: int = 16
    width: int = 5
    rank: int = 5
    padding: Any = "causal"
    extras: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)
    layouts: tuple[str, str] = ("contiguous", "contiguous")
    expanded_grad: bool = False
    seed: int = 0
    cuts: tuple[float, ...] = (0, 0.1, 0.1, 0.3, 0.32)
    """Of a packed batch, as shares of its length: sequences of length 0 and 1 among them."""
    device: str = "cpu"
    generator: torch.Generator = field(init=False)

    def make(self, shape: tuple[int, ...], which: int = 1) -> Tensor:
        """Random numbers of a shape in memory that is laid out otherwise, with NaN in every gap."""
        layout, dtype = self.layouts[which], self.dtypes[which]

        def randn(*sizes):
            return torch.randn(sizes, generator=self.generator).to(self.device, dtype)

        if layout == "sliced":
            wide = torch.full([n + 5 for n in shape], float("nan"), dtype=dtype, device=self.device)
            return wide[tuple(slice(2, 2 + n) for n in shape)].copy_(randn(*shape))
        if layout == "transposed" and len(shape) > 1:
            return randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
        if layout == "expanded" and shape[0] > 0:
            return randn(1, *shape[1:]).expand(shape)
        if layout == "repeated":
            return randn(*shape[:-1], 1).expand(shape)
        return randn(*shape)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any], list[Tensor | None]]:
        """Tensor arguments, other keywords, and upstream gradients (None: of the sum)."""
        self.generator = torch.Generator().manual_seed(self.seed)
        B = 1 if "packed" in self.extras else self.batch
        T, H, W, R = self.length, self.heads, self.width, self.rank
        D = H * self.head_size
        inputs = {"x": self.make((B, T, D), 0)}
        if self.kind == "lowrank":
            inputs |= {"codes": self.make((B, T, R)), "basis": self.make((R, D, W))}
        else:
            inputs["filters"] = self.make((H, W) if self.kind == "static" else (B, T, H, W))
        keywords: dict[str, Any] = {"padding": self.padding}
        N = B
        if "packed" in self.extras:
            ends = [0, *(int(c * T) for c in self.cuts), T]
            keywords["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32, device=self.device)
            N = len(self.cuts) + 1
        if "static" in self.extras and self.kind != "static":
            inputs["static"] = self.make((H, W))
        if "bias" in self.extras:
            inputs["bias"] = self.make((D,))
        if "softmax" in self.extras and self.kind != "lowrank":
            keywords["normalize"] = "softmax"
        if "silu" in self.extras:
            keywords["activation"] = "silu"
        keywords["residual"] = "residual" in self.extras
        keywords["output_scale"] = 0.6 if "scale" in self.extras else 1.0
        grads: list[Tensor | None] = [None if self.expanded_grad else self.make((B, T, D), 0)]
        if "state" in self.extras:
            inputs["initial_state"] = self.make((N, W - 1, D))
            keywords |= {"padding": "causal", "return_final_state": True}
            grads.append(self.make((N, W - 1, D), 0))
        return inputs, keywords, grads

    def run(self, backend: str, prepare: Callable[[Tensor], Tensor] = lambda t: t, **changed: Any) -> dict[str, Tensor]:
        """Outputs and the gradients of all inputs on a backend, each tensor `prepare`d before."""
        inputs, keywords, grads = self.tensors()
        leaves = {name: prepare(tensor).detach().requires_grad_() for name, tensor in inputs.items()}
        with dynaconv.backend(backend):
            results = OPERATORS[self.kind](**leaves | keywords | changed)
        outputs = list(results) if isinstance(results, tuple) else [results]
        seeds = [
            torch.ones_like(y) if g is None else prepare(g).to(y.dtype) for y, g in zip(outputs, grads, strict=True)
        ]
        if grads[0] is None:
            seeds[0] = outputs[0].new_ones(()).expand(outputs[0].shape)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), seeds, allow_unused=True)
        named = dict(zip(("y", "final_state"), (y.detach() for y in outputs), strict=False))
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            named[f"gradient of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
        return named

    def run_twice(self, backend: str) -> dict[str, Tensor]:
        """Second derivatives on a backend: gradients of the sum of the squares of all first ones."""
        inputs, keywords, grads = self.tensors()
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
        with dynaconv.backend(backend):
            results = OPERATORS[self.kind](**leaves | keywords)
        outputs = list(results) if isinstance(results, tuple) else [results]
        seeds = [torch.ones_like(y) if g is None else g.to(y.dtype) for y, g in zip(outputs, grads, strict=True)]
        leaves |= {f"upstream {n}": seed.detach().requires_grad_() for n, seed in enumerate(seeds)}
        seeds = [leaf for name, leaf in leaves.items() if name.startswith("upstream")]
        first = torch.autograd.grad(outputs, [leaves[name] for name in inputs], seeds, create_graph=True)
        loss = sum(gradient.double().square().sum() for gradient in first)
        second = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, second, strict=True))

    def sizes(self) -> dict[str, Tensor]:
        """Sums of the absolute values of all terms of the results: what their rounding errors are relative to."""
        # Softmax and SiLU shrink what goes through them, and their derivatives are at most 1.1.
        plain = replace(self, extras=tuple(e for e in self.extras if e not in ("softmax", "silu")))
        return plain.run("reference", lambda tensor: tensor.double().abs())

    def check(
        self, backend: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda r: r, **changed: Any
    ):
        """Errors against fp64 are at most twice those of the eager reference in the same dtype.

        The allowance beside the factor covers cases where the reference happens to be exact, or where terms cancel:
        four roundings of the sum of the absolute values of all terms. Sums in another order differ by that much.
        """
        actual, eager = change(self.run(backend, **changed)), self.run("reference")
        exact, sizes = self.run("reference", torch.Tensor.double), self.sizes()
        for name, value in actual.items():
            assert value.dtype == eager[name].dtype, name
            assert value.shape == exact[name].shape, name
            if value.numel() == 0:
                continue
            allowance = 4 * torch.finfo(value.dtype).eps * sizes[name].max().item()
            if "silu" in self.extras and value.dtype == torch.float64 and name.startswith("gradient"):
                # The reference is exact by definition here: its own rounding of the sum behind SiLU, whose second
                # derivative is at most 1/2, counts for nothing (4.5 roundings measured where 272 terms cancel).
                allowance *= 1 + sizes["y"].max().item() / 2
            error = (value.double() - exact[name]).abs().max().item()
            bound = 2 * (eager[name].double() - exact[name]).abs().max().item() + allowance
            assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g}"


def padding_of(width: int) -> st.SearchStrategy:
    return st.one_of(st.sampled_from(["causal", "same"]), st.integers(0, width - 1))


@st.composite
def problems(
    draw, kind: str, lengths: list[int], channels: list[int], widths: list[int], ranks: list[int], dtypes: list,
    limit: int = 1040, device: str = "cpu",
) -> Problem:  # fmt: skip
    """Sizes with 0, 1, primes and W > T; any head count that divides D; any padding and subset of the keywords."""
    head_size = draw(st.sampled_from(channels))
    width = draw(st.sampled_from(widths))
    return Problem(
        kind, batch=draw(st.sampled_from([0, 1, 2, 6])), length=draw(st.sampled_from(lengths)),
        heads=draw(st.sampled_from([h for h in (1, 2, 3, 5, 16) if h * head_size <= limit])), head_size=head_size, width=width,
        rank=draw(st.sampled_from(ranks)), padding=draw(padding_of(width)),
        extras=tuple(e for e in EXTRAS if draw(st.booleans())), dtypes=draw(st.sampled_from(dtypes)),
        layouts=draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 2)), expanded_grad=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)), device=device,
    )  # fmt: skip
