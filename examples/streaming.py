"""The operators token by token: a buffer that is kept between calls, several streams of different age, a step back.

python examples/streaming.py
"""

import torch

import dynaconv


@torch.no_grad()
def main() -> None:
    batch, length, dim, width, rank = 2, 12, 64, 4, 8
    x, codes = torch.randn(batch, length, dim), torch.randn(batch, length, rank)
    basis, static = torch.randn(rank, dim, width), torch.randn(dim, width)
    whole = dynaconv.lowrank_conv(x, codes, basis, static=static)

    buffer = torch.zeros(batch, width - 1 + 2, dim)  # what filters look back on, and room to take two tokens back
    pieces = [dynaconv.lowrank_conv(x[:, :5], codes[:, :5], basis, static=static, state=buffer)]  # a prompt
    for token, code in zip(x[:, 5:].split(1, 1), codes[:, 5:].split(1, 1), strict=True):
        pieces += [dynaconv.lowrank_conv(token, code, basis, static=static, state=buffer)]  # the buffer moves on
    print("largest difference from all at once:", (torch.cat(pieces, 1) - whole).abs().max().item())

    dynaconv.rollback(buffer, 2, width=width)  # the last two tokens were refused: others come in their place
    again = dynaconv.lowrank_conv(x[:, -2:], codes[:, -2:], basis, static=static, state=buffer)
    print("largest difference after a step back:", (again - whole[:, -2:]).abs().max().item())


if __name__ == "__main__":
    main()
