"""What a training step needs, counted without doing it."""

import torch
import torch.nn.functional as F
from torch import nn

from dynaconv.training.estimate import estimate, free_disk


class Network(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.first, self.second = (nn.Linear(8, 8, bias=False, device=device) for _ in range(2))

    def forward(self, x, use_cache):
        return self.second(torch.relu(self.first(x)))


def loss(outputs, labels):
    return F.cross_entropy(outputs, labels)


def test_parameters_flops_and_memory():
    batch = {"x": torch.randn(5, 8), "labels": torch.zeros(5, dtype=torch.long)}
    found = estimate(Network("meta"), batch, loss)
    assert found.parameters == 2 * 64
    # Two products forwards, and for each one with its weight and one with its input, but none for the first input.
    assert found.flops == 5 * 2 * 5 * 64
    # The input, the result of ReLU, log-probabilities, in fp32; the labels, in int64, and a number of the loss.
    kept = 4 * 3 * 5 * 8 + 8 * 5
    assert kept <= found.activations <= kept + 8
    assert found.memory == 16 * 128 + found.activations
    assert found.checkpoint == 12 * 128


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert free_disk(tmp_path / "a" / "b") == free_disk(tmp_path) > 0
