"""Write the arrays in this folder from dumps of fairseq: python extract.py FOLDER-OF-DUMPS."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

MODELS = ("dyn_post", "light_pre")
BATCHES = ("main_left", "main_right", "short_right")


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
    for name in MODELS:
        golden = torch.load(source / f"golden_v0122_{name}.pt", weights_only=True)
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(source / f"ckpt_v0122_{name}.pt", weights_only=True)
        arrays = {f"weights/{key}": value.numpy() for key, value in checkpoint["model"].items()}
        for batch in BATCHES:
            case = golden["batches"][batch]
            for key in ("src_tokens", "prev_output_tokens", "logits"):
                arrays[f"{batch}/{key}"] = case[key].numpy()
        for row, hypotheses in enumerate(golden["batches"]["main_left"]["beam4_lenpen1.0"]):
            arrays[f"beam/{row}/tokens"] = hypotheses[0]["tokens"].numpy()
            arrays[f"beam/{row}/score"] = np.asarray(float(hypotheses[0]["score"]))
        np.savez_compressed(here / f"model_{name}.npz", **arrays)


if __name__ == "__main__":
    main()
