"""What the layers of a network need to know about the sequences they are given, and keep of them between calls.

Dims: B batch, T tokens, D channels, W taps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StreamStates:
    """The last inputs of convolutions and the states of recurrences of one layer, by name.

    While `record_past` is set, all inputs since the last :meth:`drop` are kept, so that tokens can be taken back.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.recurrent: dict[str, Tensor] = {}
        self.record_past = False
        self._kept: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._before = 0

    def past(self, name: str, x: Tensor, keep: int) -> Tensor:
        """The `keep` inputs before x [B, T, D], [B, keep, D], oldest first; zeros before the first token."""
        if name not in self.inputs:
            if self._before:
                raise ValueError(
                    f"the cache holds {self._before} tokens that the convolution {name} has not seen: begin with "
                    "an empty cache"
                )
            self.inputs[name] = x.new_zeros(x.shape[0], keep, x.shape[2])
            self._kept[name], self._tokens[name] = keep, 0
        inputs = self.inputs[name]
        return inputs[:, inputs.shape[1] - keep :]

    def convolve(
        self, conv: Callable[..., Tensor], name: str, x: Tensor, *condition: Tensor, keep: int,
        padding: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """conv(x, *condition, ...) with the `keep` inputs before x [B, T, D], to which x is then appended.

        Args:
            conv: a causal convolution.
            name: under which its last inputs are kept.
            x: [B, T, D].
            *condition: [B, T, C], what else `conv` takes.
            keep: inputs that it needs of those before.
            padding: [B, T], True where a row has no token: there y is zero, and the tokens before and behind follow one
                another. None: there is none.

        Raises:
            ValueError: padding behind a token, while inputs are recorded to be taken back.
        """
        past = self.past(name, x, keep)
        if padding is not None and not self.record_past:
            return self._convolve_tokens(conv, name, past, padding, x, *condition)
        if padding is not None:
            self._check_leading(name, padding)
        # Without gradients, and where the last inputs are all that is kept, the operator overwrites them itself.
        in_place = not (torch.is_grad_enabled() or self.record_past or torch.compiler.is_compiling())
        if in_place and past.dtype == x.dtype and self.inputs[name].shape == (*x.shape[:1], keep, x.shape[2]):
            y = conv(x, *condition, state=past)
            self._count(name, x)
        else:
            y = conv(x, *condition, initial_state=past)
            self._advance(name, x)
        return y

    def _convolve_tokens(
        self, conv: Callable[..., Tensor], name: str, past: Tensor, padding: Tensor, *arguments: Tensor
    ) -> Tensor:
        """Of rows without their padding, which is moved behind the tokens and back again."""
        order = padding.to(torch.uint8).argsort(dim=1, stable=True)
        x, *condition = (_take(argument, order) for argument in arguments)
        y = _take(conv(x, *condition, initial_state=past), order.argsort(dim=1)).masked_fill(padding[..., None], 0)
        last = (~padding).sum(1, keepdim=True) + torch.arange(past.shape[1], device=padding.device)
        _replace(self.inputs, name, _take(torch.cat([past, x], dim=1), last))
        self._count(name, x)
        return y

    def _check_leading(self, name: str, padding: Tensor) -> None:
        if self._tokens[name] or bool((padding[:, 1:] & ~padding[:, :-1]).any()):
            raise ValueError(
                "padding behind a token cannot be recorded to be taken back: put it on the left of the first call"
            )

    def _count(self, name: str, x: Tensor) -> None:
        # A number that changed with every call would be compiled again with every call.
        counted = self._tokens[name] >= 0 and not torch.compiler.is_compiling()
        self._tokens[name] = self._tokens[name] + x.shape[1] if counted else -1

    def _advance(self, name: str, x: Tensor) -> None:
        """Append x [B, T, D], after :meth:`past` has been read."""
        inputs, keep = self.inputs[name], self._kept[name]
        self._count(name, x)
        if self.record_past:
            self.inputs[name] = torch.cat([inputs, x], dim=1)
            return
        recent = x if x.shape[1] >= keep else torch.cat([inputs[:, inputs.shape[1] - keep :], x], dim=1)
        recent = recent[:, recent.shape[1] - keep :]
        _replace(self.inputs, name, recent)

    def store(self, name: str, state: Tensor) -> None:
        """Keep the state [B, ...] that a recurrence has reached."""
        _replace(self.recurrent, name, state)

    def drop(self, tokens: int) -> None:
        """Take the last `tokens` tokens back.

        Raises:
            RuntimeError: the layer has a recurrence, which cannot go back, or has not recorded so many tokens.
        """
        if tokens and self.recurrent:
            raise RuntimeError(f"a recurrence cannot take tokens back; got tokens = {tokens}")
        for name, keep in self._kept.items():
            spare = self.inputs[name].shape[1] - keep
            if tokens > spare:
                raise RuntimeError(
                    f"{tokens} tokens cannot be taken back, {spare} were recorded: call activate_past_recording() "
                    "on the cache after its first use and before these tokens"
                )
        for name, keep in self._kept.items():
            end = self.inputs[name].shape[1] - tokens
            self.inputs[name] = self.inputs[name][:, end - keep : end].clone()
            self._tokens[name] -= tokens if self._tokens[name] >= 0 else 0

    def check(self, tokens: int) -> None:
        """Raise ValueError unless these are the states after so many tokens, now or when one is asked for."""
        self._before = tokens
        if seen := [number for number in self._tokens.values() if number not in (-1, tokens)]:
            raise ValueError(
                f"the cache holds {tokens} tokens, of which the convolutions have seen {seen[0]}: something else "
                "has changed it; begin with an empty cache"
            )

    def select_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor [B, ...] by `change` of it."""
        for tensors in (self.inputs, self.recurrent):
            for name, tensor in tensors.items():
                tensors[name] = change(tensor)

    def clear(self) -> None:
        """Back to the first token; tensors stay where they are, for CUDA graphs."""
        for tensors in (self.inputs, self.recurrent):
            for name, tensor in tensors.items():
                _replace(tensors, name, torch.zeros_like(tensor))
        self._tokens = dict.fromkeys(self._tokens, 0)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """The tokens `order` [B, N] of x [B, T, D], [B, N, D]."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))


def _replace(tensors: dict[str, Tensor], name: str, new: Tensor) -> None:
    old = tensors.get(name)
    # What a backward pass has saved must not change; without one the address stays, for CUDA graphs.
    if old is None or old.shape != new.shape or torch.is_grad_enabled():
        tensors[name] = new.clone()
    else:
        old.copy_(new)


class Stream:
    """The sequences of one call of a layer.

    Args:
        mask: [B, T], nonzero at tokens and zero at padding; None: no padding.
        cu_seqlens: [N + 1], the ends of packed sequences in the B rows of T tokens laid end to end; every row begins a
            sequence. None: every row is one sequence.
        states: what the layer keeps between calls; None: it begins and ends with this call.

    Raises:
        ValueError: both `cu_seqlens` and `states` are given.
    """

    def __init__(
        self, mask: Tensor | None = None, cu_seqlens: Tensor | None = None, states: StreamStates | None = None
    ):
        if cu_seqlens is not None and states is not None:
            raise ValueError("packed sequences have no states between calls: give either cu_seqlens or states")
        self.padding = None if mask is None else mask[..., None] == 0
        self.cu_seqlens, self.states = cu_seqlens, states

    def masked(self, x: Tensor) -> Tensor:
        """x [B, T, D] with zeros at padding."""
        return x if self.padding is None else x.masked_fill(self.padding, 0)

    def convolve(self, conv: Any, name: str, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Convolve x [B, T, D], a causal convolution of a name that no other in this layer has.

        Args:
            conv: :class:`ShortConv` or :class:`DynamicShortConv`, or what takes the same arguments and has a `width`.
            name: under which its last inputs are kept.
            x: [B, T, D].
            condition: [B, T, C] where `conv` takes one.

        Returns:
            [B, T, D].
        """
        x = self.masked(x)
        arguments = (x,) if condition is None else (x, condition)
        if self.cu_seqlens is not None:
            rows = [argument.flatten(0, 1)[None] for argument in arguments]
            return conv(*rows, cu_seqlens=self.cu_seqlens).view(x.shape)
        keep = conv.width - 1
        if self.states is None or keep == 0:
            return conv(*arguments)
        padding = None if self.padding is None else self.padding[..., 0]
        return self.states.convolve(conv, name, *arguments, keep=keep, padding=padding)

    def recur(
        self, recurrence: Callable[..., tuple[Tensor, Tensor | None]], name: str, *tensors: Tensor, **options: Any
    ) -> Tensor:
        """Run a recurrence of a name that no other in this layer has.

        Args:
            recurrence: :func:`state_space_scan` or :func:`gated_delta_rule`, or what takes `initial_state` and
                `cu_seqlens` as they do and returns the pair (y, final state).
            name: under which its state is kept.
            *tensors: arguments of `recurrence`.
            **options: arguments of `recurrence`.

        Returns:
            y.
        """
        states = self.states
        initial = None if states is None else states.recurrent.get(name)
        y, final = recurrence(*tensors, initial_state=initial, cu_seqlens=self.cu_seqlens, **options)
        if states is not None and final is not None:
            states.store(name, final)
        return y
