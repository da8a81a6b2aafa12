"""A block with DynamicConv in the place of self-attention, trained to predict the next byte of a text file.

python examples/block.py README.md
"""

import argparse

import torch
from torch import Tensor, nn

import dynaconv


class Block(nn.Module):
    """x + DynamicConv(norm(x)), then a feed-forward layer in the same way: [B, T, D] to [B, T, D]."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.inner = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GLU())
        self.conv = dynaconv.nn.DynamicConv(dim, kernel_size, heads=8, padding="causal", weight_dropout=0.1)
        self.outer = nn.Linear(dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.outer(self.conv(self.inner(self.norms[0](x))))
        return x + self.ffn(self.norms[1](x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    with open(options.text, "rb") as file:
        text = torch.tensor(list(file.read()))
    model = nn.Sequential(nn.Embedding(256, 128), *(Block(128, width) for width in (3, 7, 15)), nn.Linear(128, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(1, options.steps + 1):
        begins = torch.randint(len(text) - 129, (16,))
        rows = torch.stack([text[begin : begin + 129] for begin in begins])
        loss = nn.functional.cross_entropy(model(rows[:, :-1]).transpose(1, 2), rows[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: {loss.item() / 0.6931:.2f} bits a byte")


if __name__ == "__main__":
    main()
