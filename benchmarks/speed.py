"""Attention, LightConv and DynamicConv at the 2019 paper's sizes: decoding, training, and cost against length.

Weights are random, and every translation has as many tokens as its reference, so that all networks do the same amount
of work on real sentences, whose lengths come from the test set of a run. All that is compared runs in interleaved
rounds; every number is the fastest.

    python benchmarks/speed.py runs/demo --output benchmarks/results/speed_cpu
"""

import argparse
import gc
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import StoppingCriteriaList

from dynaconv.bench.decoding import fastest
from dynaconv.bench.machine import describe
from dynaconv.bench.memory import peak_bytes
from dynaconv.data.batching import Seq2SeqCollator, TokenBatchSampler
from dynaconv.data.lines import read_all
from dynaconv.data.tokenizer import load_tokenizers
from dynaconv.models import LightConvConfig, LightConvForConditionalGeneration
from dynaconv.models.lightconv.layers import EncoderLayer
from dynaconv.seq2seq.corpus import SIDES
from dynaconv.seq2seq.search import LengthLimits

matplotlib.use("agg")
import matplotlib.pyplot as plt

MIXERS = {"attention": "attention", "LightConv": "lightweight", "DynamicConv": "dynamic"}
LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
BEAMS = 5


def read_pairs(run: Path) -> list[dict[str, np.ndarray]]:
    """Token ids of the test set of a run."""
    tokenizers = load_tokenizers(run, SIDES)
    lines = [dict(zip(SIDES, line.split("\t"), strict=True)) for line in read_all([run / "test.tsv"])]
    return [{side: np.array(tokenizers[side](line[side])["input_ids"]) for side in SIDES} for line in lines]


def decode(model: Any, pairs: list[dict[str, np.ndarray]]) -> None:
    """Beam search for a batch, each sentence as long as its reference."""
    batch, lengths = Seq2SeqCollator()(pairs), torch.tensor([len(pair["target"]) for pair in pairs])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    longest = int(lengths.max())
    model.generate(
        **inputs, num_beams=BEAMS, min_new_tokens=longest, max_new_tokens=longest,
        stopping_criteria=StoppingCriteriaList([LengthLimits(lengths)]),
    )  # fmt: skip


def update(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> None:
    """A training step."""
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def layer_pass(layer: EncoderLayer, x: torch.Tensor) -> None:
    """Forward and backward."""
    layer(x, None).sum().backward()
    layer.zero_grad()
    x.grad = None


def speeds(preset: str, pairs: list[dict[str, np.ndarray]], rounds: int) -> list[dict[str, Any]]:
    """A row for each workload: a number for each network."""
    size = 1 + max(int(pair[side].max()) for pair in pairs for side in SIDES)
    models = {
        name: LightConvForConditionalGeneration(
            LightConvConfig.from_preset(
                preset, vocab_size=size, encoder_mixer=mixer, decoder_mixer=mixer, share_embeddings="all"
            )
        )
        for name, mixer in MIXERS.items()
    }
    rows = []
    typical = sorted(pairs, key=lambda pair: len(pair["source"]))
    for count in (1, 32):
        middle = typical[len(typical) // 2 - count // 2 :][:count]
        runs: dict[str, Callable[[], Any]] = {
            name: partial(decode, model.eval(), middle) for name, model in models.items()
        }
        tokens = np.mean([len(pair["target"]) for pair in middle])
        seconds = fastest(runs, rounds if count > 1 else 4 * rounds, 1)  # one sentence takes half a second
        label = f"beam {BEAMS}, batch {count}, {tokens:.0f} tokens: sentences/s"
        rows.append({"workload": label, "speed": {name: count / value for name, value in seconds.items()}})
    lengths = np.array([max(len(pair[side]) for side in SIDES) for pair in pairs])
    indices = list(TokenBatchSampler(lengths, 2000, shuffle=False))
    batch = Seq2SeqCollator()([pairs[i] for i in indices[len(indices) // 2]])
    targets = int((batch["labels"] != -100).sum())
    runs = {
        name: partial(update, model.train(), torch.optim.Adam(model.parameters(), 1e-6), batch)
        for name, model in models.items()
    }
    seconds = fastest(runs, rounds, 1)
    rows.append(
        {"workload": "training: target tokens/s", "speed": {k: targets / value for k, value in seconds.items()}}
    )
    return rows


def costs(preset: str, rounds: int, longest: int) -> list[dict[str, Any]]:
    """Time and memory of an encoder layer, forward and backward, with the widest kernel."""
    rows = []
    for length in tqdm([n for n in LENGTHS if n <= longest], desc="lengths"):
        x, runs = None, {}
        for name, mixer in MIXERS.items():
            config = LightConvConfig.from_preset(preset, vocab_size=8, encoder_mixer=mixer)
            layer = EncoderLayer(config, config.encoder_layers - 1).train()
            x = torch.randn(1, length, config.d_model, requires_grad=True)
            runs[name] = partial(layer_pass, layer, x)
        seconds = fastest(runs, rounds if length <= 4096 else 2, 1)
        for name, run in runs.items():
            gc.collect()
            rows.append(
                {"mixer": name, "length": length, "ms": 1e3 * seconds[name], "MB": peak_bytes(run, "cpu") / 1e6}
            )
    return rows


def plot(speed: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]], path: Path) -> None:
    """Speeds beside those of attention; time and memory against length, on logarithmic axes."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained", width_ratios=[1.2, 1, 1])
    works = [(preset, row) for preset, group in speed.items() for row in group]
    for shift, name in enumerate(MIXERS):
        ratios = [row["speed"][name] / row["speed"]["attention"] for _, row in works]
        axes[0].barh([i + 0.27 * (shift - 1) for i in range(len(works))], ratios, 0.25, label=name)
    labels = [f"{preset.removeprefix('lightconv_')}\n{row['workload'].split(':')[0]}" for preset, row in works]
    axes[0].set_yticks(range(len(works)), labels, fontsize=8)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="speed / speed of attention", title="decoding and training")
    axes[0].grid(alpha=0.3, axis="x")
    for ax, unit, title in zip(axes[1:], ("ms", "MB"), ("time", "peak memory"), strict=True):
        for name in MIXERS:
            own = [row for row in rows if row["mixer"] == name]
            ax.loglog([row["length"] for row in own], [row[unit] for row in own], marker="o", label=name, base=2)
        ax.set(xlabel="tokens (forward and backward)", ylabel=unit, title=f"{title} of a layer")
        ax.grid(alpha=0.3)
    axes[1].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, plot and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder: tokenizers and test.tsv")
    parser.add_argument("--presets", nargs="+", default=["lightconv_iwslt_de_en", "lightconv_wmt_en_de"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--output", type=Path, required=True, help="write OUTPUT.json and OUTPUT.png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs = read_pairs(options.run)
    table = Table("network", "workload", *MIXERS, "LightConv / attention", "DynamicConv / attention")
    found = {}
    for preset in tqdm(options.presets, desc="networks"):
        found[preset] = speeds(preset, pairs, options.rounds)
        for row in found[preset]:
            speed = row["speed"]
            ratios = [f"{speed[name] / speed['attention']:.2f}" for name in ("LightConv", "DynamicConv")]
            table.add_row(preset, row["workload"], *(f"{value:,.2f}" for value in speed.values()), *ratios)
    lengths = costs(options.presets[-1], options.rounds, options.longest)
    plot(found, lengths, options.output.with_suffix(".png"))
    grown = Table("tokens", *(f"{name}, {unit}" for unit in ("ms", "MB") for name in MIXERS))
    for length in sorted({row["length"] for row in lengths}):
        own = [row for row in lengths if row["length"] == length]
        grown.add_row(f"{length:,}", *(f"{row[unit]:,.1f}" for unit in ("ms", "MB") for row in own))
    for shown in (table, grown):
        Console().print(shown)
    record = {"machine": describe(), "speed": found, "lengths": lengths}
    options.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
