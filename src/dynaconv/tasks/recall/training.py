"""One network learns one task of recall."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.batching import NO_LABEL
from ...models import DynaConvConfig, DynaConvForCausalLM
from ...training.trainer import decaying
from . import generators


@dataclass
class Experiment:
    """A task of recall, and a network that learns it."""

    task: str
    """mqar, compositional, variable_key or fuzzy; see :mod:`dynaconv.tasks.recall.generators`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of its generator."""
    train_size: int = 8000
    """Sequences."""
    test_size: int = 1000
    """Sequences, none of the training ones but by chance."""
    hidden_size: int = 64
    """Width of the Transformer; its feed-forward layers are twice as wide."""
    layers: int = 1
    heads: int = 2
    placement: str = "qkv"
    """Of the convolutions."""
    width: int = 4
    """Taps."""
    rank: int = 15
    """Of low-rank filters."""
    head_dim: int = 16
    """Channels that share a head-wise filter."""
    steps: int = 500
    """Updates."""
    batch: int = 64
    """Sequences of an update."""
    learning_rate: float = 2e-3
    """Its peak, after a third of the updates; AdamW with one cycle of the rate."""
    weight_decay: float = 0.1
    """Decoupled; not of convolutions, norms and biases."""
    tests: int = 5
    """Measurements of the accuracy, the last one at the end."""

    def sequences(self, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Inputs and labels, {"train", "test"}, the same for every network."""
        make: Callable[..., generators.Sequences] = getattr(generators, self.task)
        found = {}
        for i, (split, size) in enumerate({"train": self.train_size, "test": self.test_size}.items()):
            special = {"training": split == "train"} if self.task == "fuzzy" else {}
            inputs, labels = make(size, np.random.default_rng([seed, i]), **self.options, **special)
            found[split] = torch.from_numpy(inputs), torch.from_numpy(labels)
        return found


def train_once(
    experiment: Experiment, convolutions: str, seed: int, device: str, progress: Callable[[], None]
) -> dict[str, Any]:
    """Train one network.

    Args:
        experiment: the task and the network.
        convolutions: "none", "static", "headwise" or "lowrank", at `placement`.
        seed: of sequences, weights and batches.
        device: to train on.
        progress: called after every update.

    Returns:
        `accuracy`: [(updates, share of the labels of the test sequences that were predicted)], `parameters`, and
        `diverged`: the update at which the loss was not finite, or None.
    """
    data = {split: [part.to(device) for part in parts] for split, parts in experiment.sequences(seed).items()}
    inputs, labels = data["train"]
    torch.manual_seed(seed)
    model = _network(experiment, convolutions, int(max(part[0].max() for part in data.values())) + 1)
    model.to(torch.device(device))  # pyrefly: ignore [bad-argument-type]
    optimizer = torch.optim.AdamW(_groups(model, experiment.weight_decay), experiment.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, experiment.learning_rate, experiment.steps)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    accuracy: list[tuple[int, float]] = []
    result = {"parameters": model.num_parameters(), "accuracy": accuracy, "diverged": None}
    measured = {experiment.steps * (i + 1) // experiment.tests for i in range(experiment.tests)}
    for step in range(1, experiment.steps + 1):
        if len(order) < experiment.batch:
            order = torch.cat([order, torch.randperm(len(inputs), generator=generator)])
        chosen, order = order[: experiment.batch].to(device), order[experiment.batch :]
        loss = _loss(model, inputs[chosen], labels[chosen])
        if not loss.isfinite():
            return {**result, "diverged": step}
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress()
        if step in measured:
            tested, answers = data["test"]
            accuracy.append((step, measure(model, tested, answers, experiment.batch)))
    return result


@torch.no_grad()
def measure(model: Any, inputs: Tensor, labels: Tensor, batch: int) -> float:
    """The share of the labels that a model predicts."""
    model.eval()
    right = sum(
        int((_logits(model, x, y).argmax(-1) == y[y != NO_LABEL]).sum())
        for x, y in zip(inputs.split(batch), labels.split(batch), strict=True)
    )
    model.train()
    return right / int((labels != NO_LABEL).sum())


def _network(experiment: Experiment, convolutions: str, vocab_size: int) -> DynaConvForCausalLM:
    config = DynaConvConfig(
        vocab_size=vocab_size,
        hidden_size=experiment.hidden_size,
        intermediate_size=2 * experiment.hidden_size,
        num_hidden_layers=experiment.layers,
        num_attention_heads=experiment.heads,
        placement=experiment.placement,
        conv_width=experiment.width,
        conv_rank=experiment.rank,
        conv_head_dim=experiment.head_dim,
        conv=convolutions,
    )
    return DynaConvForCausalLM(config)


def _groups(model: DynaConvForCausalLM, weight_decay: float) -> list[dict[str, Any]]:
    chosen = decaying(model)
    matrices = [p for name, p in model.named_parameters() if name in chosen]
    others = [p for name, p in model.named_parameters() if name not in chosen]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _loss(model: DynaConvForCausalLM, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(_logits(model, inputs, labels), labels[labels != NO_LABEL])


def _logits(model: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """[labels, V], computed where there are labels only."""
    hidden = model.model(inputs, use_cache=False).last_hidden_state
    return model.lm_head(hidden[labels != NO_LABEL]).float()
