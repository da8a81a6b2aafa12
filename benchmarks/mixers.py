"""Runs that differ in their mixer, side by side: BLEU, learning curves, training and decoding speed.

Speeds are measured here, not taken from the logs: every round times one update of every model on the same batch, and
translates the same sentences with every model; the table shows medians.

    python benchmarks/mixers.py runs/deen-dynamic runs/deen-lightweight runs/deen-attention \
        --output benchmarks/results/mixers_cpu
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dynaconv.bench.machine import describe
from dynaconv.data.batching import Seq2SeqCollator, TokenBatchSampler
from dynaconv.seq2seq.corpus import Corpus, prepare
from dynaconv.tasks.translation.evaluation import evaluate
from dynaconv.tasks.translation.recipe import Recipe
from dynaconv.tasks.translation.test_sets import EvaluationSet
from dynaconv.tasks.translation.translator import Translator
from dynaconv.training.curves import plot_curves
from dynaconv.training.recipe import load_recipe


def training_speed(models: dict[str, Any], corpus: Corpus, max_tokens: int, rounds: int) -> dict[str, float]:
    """Target tokens per second of one update each, medians over batches of the training set."""
    sampler = TokenBatchSampler.of(corpus.train, max_tokens)
    optimizers = {name: torch.optim.Adam(model.parameters(), 1e-6) for name, model in models.items()}
    collate, speeds = Seq2SeqCollator(), {name: [] for name in models}
    for _, indices in zip(tqdm(range(rounds), desc="training"), sampler, strict=False):
        batch = collate([corpus.train[i] for i in indices])
        tokens = (batch["labels"] != -100).sum().item()
        for name, model in models.items():
            model.train()
            started = time.perf_counter()
            model(**batch).loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            speeds[name].append(tokens / (time.perf_counter() - started))
    return {name: median(values[2:]) for name, values in speeds.items()}


def decoding_speed(translators: dict[str, Translator], lines: list[str], rounds: int) -> dict[str, float]:
    """Sentences per second with four beams."""
    speeds = {name: [] for name in translators}
    for _ in tqdm(range(rounds), desc="decoding"):
        for name, translator in translators.items():
            translator.model.eval()
            started = time.perf_counter()
            translator.generate(lines, beams=4)
            speeds[name].append(len(lines) / (time.perf_counter() - started))
    return {name: median(values) for name, values in speeds.items()}


def main() -> None:
    """Measure, print, plot and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of one recipe")
    parser.add_argument("--rounds", type=int, default=20, help="updates timed for every model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="write OUTPUT.json and OUTPUT.png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.runs[0] / "recipe.yaml", Recipe)
    corpus = prepare(recipe.data, recipe.vocabulary())
    histories = {run.name: json.loads((run / "history.json").read_text()) for run in options.runs}
    plot_curves(histories, options.output.with_suffix(".png"), ["BLEU"])
    translators = {run.name: Translator.from_pretrained(run, "cpu") for run in options.runs}
    models = {name: translator.model for name, translator in translators.items()}
    text = corpus.text["test"]
    results = {}
    for name, translator in translators.items():
        scores = evaluate(
            translator, EvaluationSet(text["source"], [text["target"]]), language=recipe.data.target_lang, beams=4
        )["scores"]
        losses = [entry["eval_loss"] for entry in histories[name] if "eval_loss" in entry]
        results[name] = {"parameters": models[name].num_parameters(), "validation loss": losses[-1], "scores": scores}
    decoding = decoding_speed(translators, text["source"][:300], 3)
    training = training_speed(models, corpus, recipe.train.max_tokens, options.rounds)
    table = Table(
        "run", "parameters", "test BLEU", "chrF", "validation loss", "target tokens/s", "sentences/s, 4 beams"
    )
    for name, result in results.items():
        result |= {"training tokens/s": training[name], "decoding sentences/s": decoding[name]}
        scores = [f"{result['scores'][metric]['score']:.2f}" for metric in ("BLEU", "chrF")]
        loss, speeds = f"{result['validation loss']:.3f}", (f"{training[name]:,.0f}", f"{decoding[name]:.1f}")
        table.add_row(name, f"{result['parameters']:,}", *scores, loss, *speeds)
    Console().print(table)
    settings = {"updates": recipe.train.max_steps, "test sentences": len(text["source"]), "rounds": options.rounds}
    record = {"machine": describe(), "settings": settings, "runs": results}
    options.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
