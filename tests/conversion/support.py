"""Checkpoints as every version of fairseq writes them, made from the weights of the tiny models in tests/golden."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from dynaconv.conversion.fairseq.convert import convert

GOLDEN = Path(__file__).parent.parent / "golden"
VARIANTS = ("dyn_post", "light_pre", "dyn_iwslt")
LAYOUTS = ("0.6.1", "0.9", "0.12", "main")


def arrays_of(variant):
    with np.load(GOLDEN / f"model_{variant}.npz") as file:
        return {name: file[name] for name in file.files}


def contents_of(variant):
    """Options, and weights as fairseq 0.12 names them."""
    arrays = arrays_of(variant)
    weights = {
        name.removeprefix("weights/"): torch.from_numpy(a) for name, a in arrays.items() if name.startswith("weights/")
    }
    for name in [name for name in weights if ".encoder_attn.in_proj_" in name]:
        for part, piece in zip("qkv", weights.pop(name).chunk(3)):
            weights[name.replace("in_proj_", f"{part}_proj.")] = piece.clone()
    return json.loads(str(arrays["flags"])), weights


def in_layout(weights, layout):
    """Weights of 0.9 and 0.12 as another version stores them."""
    if layout == "0.6.1":
        weights = dict(weights)
        for name in [name for name in weights if ".encoder_attn.q_proj." in name]:
            parts = [weights.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            weights[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    elif layout == "main":
        new = {}
        for name, tensor in weights.items():
            if "_float_tensor" in name:
                continue
            name = name.replace("layer_norms.0", "layer_norm1").replace("layer_norms.1", "layer_norm2")
            new["decoder.output_projection.weight" if name == "decoder.embed_out" else name] = tensor
            if name.endswith("conv.weight_linear.weight"):
                new[name.replace("weight_linear.weight", "conv_bias")] = torch.full((1, 1, tensor.shape[1]), 3e14)
        if not any("adaptive_softmax" in name for name in new):
            new.setdefault("decoder.output_projection.weight", new["decoder.embed_tokens.weight"])
        weights = new
    return weights


def save(path, flags, weights, layout="0.12", legacy=False, task=None):
    """A checkpoint file with what stands beside the weights; `task`: options of the task, from 0.12 on."""
    options = argparse.Namespace(**flags)
    beside = {
        "optimizer_history": [{"num_updates": 700, "lr_scheduler_state": {"best": None}}],
        "extra_state": {"best": 1.5},
    }
    if layout in ("0.6.1", "0.9"):
        content = {"args": options, "model": weights, **beside}
    else:
        content = {
            "args": None,
            "cfg": {"_name": None, "model": options, "task": task, "bpe": None},
            "model": weights,
            **beside,
        }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_dictionaries(folder, **sizes):
    """dict.LANG.txt of so many ids, as fairseq pads them."""
    for language, size in sizes.items():
        lines = [f"{language[0]}{i:02d} {100 - i}\n" for i in range(size - 7)] + [
            f"madeupword{i:04d} 0\n" for i in range(3)
        ]
        (folder / f"dict.{language}.txt").write_text("".join(lines), "utf-8")
    return folder


def checkpoint_of(folder, variant="dyn_post", layout="0.12", legacy=False, change=None, **flags):
    """A folder with a checkpoint and its dictionaries; `change` takes and returns the weights."""
    folder.mkdir(exist_ok=True)
    own, weights = contents_of(variant)
    weights = weights if change is None else change(weights)
    sizes = {"xx": len(weights["encoder.embed_tokens.weight"]), "yy": len(weights["decoder.embed_tokens.weight"])}
    write_dictionaries(folder, **sizes)
    return save(folder / "model.pt", {**own, **flags}, in_layout(weights, layout), layout, legacy)


def converted(tmp_path, *args, **kwargs):
    """The model that a checkpoint of `checkpoint_of` becomes, and the folder of it."""
    path = checkpoint_of(tmp_path / "fairseq", *args, **kwargs)
    return convert(path, tmp_path / "ours").model, tmp_path / "ours"
