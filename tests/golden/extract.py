"""Write the arrays in this folder from dumps of fairseq: python extract.py FOLDER-OF-DUMPS."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

MODELS = {
    "dyn_post": ("ckpt_v0122_dyn_post", "golden_v0122_dyn_post"),
    "light_pre": ("ckpt_v0122_light_pre", "golden_v0122_light_pre"),
    "dyn_iwslt": ("ckpt_v061_dyn_iwslt_legacyfmt", "golden_v061_dyn_iwslt"),
}
BATCHES = ("main_left", "main_right", "short_left", "short_right")
ARRAYS = ("src_tokens", "prev_output_tokens", "target", "logits")
BEAMS = ("beam1_lenpen1.0", "beam4_lenpen1.0", "beam5_lenpen0.5")


class Meter:
    def __setstate__(self, state):
        pass


def main() -> None:
    source = Path(sys.argv[1])
    here = Path(__file__).parent
    for kind in ("lightconv", "dynamicconv"):
        cases = torch.load(source / f"{kind}.pt", weights_only=True)["cases"]
        arrays = {}
        for case in cases:
            for key, value in case.items():
                if isinstance(value, torch.Tensor):
                    arrays[f"{case['name']}/{key}"] = value.numpy()
                elif isinstance(value, bool | int):
                    arrays[f"{case['name']}/{key}"] = np.asarray(value)
        np.savez_compressed(here / f"{kind}.npz", **arrays)
    for name, (checkpoint, golden) in MODELS.items():
        np.savez_compressed(here / f"model_{name}.npz", **model(source / f"{checkpoint}.pt", source / f"{golden}.pt"))
    for name, case in torch.load(source / "golden_v0122_lm.pt", weights_only=True)["variants"].items():
        arrays = {"flags": np.asarray(json.dumps(case["args"]))}
        arrays |= {f"weights/{key}": value.numpy() for key, value in case["state_dict"].items()}
        arrays |= {key: case[key].numpy() for key in ("tokens", "target", "log_probs")}
        np.savez_compressed(here / f"lm_{name}.npz", **arrays)


def model(checkpoint: Path, golden: Path) -> dict[str, np.ndarray]:
    """Options, weights, and by batch inputs, logits, losses and what beam search found."""
    meters = [(Meter, f"fairseq.meters.{name}") for name in ("AverageMeter", "StopwatchMeter", "TimeMeter")]
    with torch.serialization.safe_globals([argparse.Namespace, *meters]):
        content = torch.load(checkpoint, weights_only=True)
    flags = vars(content["args"] or content["cfg"]["model"])
    prefixes = ("encoder_", "decoder_", "share_", "weight_", "input_", "max_source", "max_target", "arch")
    suffixes = ("dropout", "_lang", "learned_pos")
    flags = {key: value for key, value in flags.items() if key.startswith(prefixes) or key.endswith(suffixes)}
    arrays = {"flags": np.asarray(json.dumps(flags))}
    arrays |= {f"weights/{key}": value.numpy() for key, value in content["model"].items()}
    batches = torch.load(golden, weights_only=True)["batches"]
    for batch in BATCHES:
        if (case := batches.get(batch)) is None:
            continue
        for key in ARRAYS:
            arrays[f"{batch}/{key}"] = case[key].numpy()
        for key in ("nll_sum", "label_smoothed_loss_sum"):
            arrays[f"{batch}/{key}"] = np.asarray(case[key])
        if batch == "main_left":
            arrays[f"{batch}/logits_incremental"] = case["logits_incremental"].numpy()
        if batch.endswith("_left"):
            for beam in BEAMS:
                hypotheses = [hypothesis for found in case[beam] for hypothesis in found]
                tokens = [hypothesis["tokens"] for hypothesis in hypotheses]
                arrays[f"{batch}/{beam}/tokens"] = torch.nn.utils.rnn.pad_sequence(tokens, True, 1).numpy()
                arrays[f"{batch}/{beam}/scores"] = np.asarray([float(hypothesis["score"]) for hypothesis in hypotheses])
    return arrays


if __name__ == "__main__":
    main()
