"""The network of a recipe, and whether it sees only what it may."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...grafting.graft import graft
from ...training.checkpoints import loading
from ...training.loading import load_network, reader
from .recipe import ModelConfig


def build(model: ModelConfig, config: Any) -> PreTrainedModel:
    """The network, with new weights, or those of the folder that it goes on from.

    Raises:
        ValueError: no causal language model, damaged weights, or convolutions that do not fit.
    """
    if model.folder is not None:
        folder = Path(model.folder)
        with loading(folder):
            network = load_network(reader(config), folder, config=config, dtype=torch.float32)
    else:
        if type(config) not in AutoModelForCausalLM._model_mapping:
            raise ValueError(f"model.host: {model.host} has no causal language model")
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if model.graft.placement is not None and not getattr(config, "dynaconv", None):  # with which it has them already
        convolutions: dict[str, Any] = dataclasses.asdict(model.graft)
        graft(network, **convolutions)
    return network


@torch.no_grad()
def check_causal(network: PreTrainedModel, *, packed: bool) -> None:
    """Refuse a network in which tokens see those behind them or, where they are packed, those of other documents.

    Short convolutions that are the identity at first are given other values for as long as that takes.

    Raises:
        ValueError: another last token changes logits before it, or two short documents in one row have other logits
            than each in a row of its own.
    """
    training, call = network.training, cast(Any, network.eval())
    convolutions = {name: p for name, p in network.named_parameters() if "short_convs" in name}
    kept = {name: p.clone() for name, p in convolutions.items()}
    generator = torch.Generator(network.device).manual_seed(0)
    for parameter in convolutions.values():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator, device=parameter.device)
    ids = torch.arange(3, 15, device=network.device)[None] % network.config.get_text_config().vocab_size
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None].to(network.device)
    advice = "set data.rows to documents, or choose another model"
    try:
        whole = call(input_ids=ids, use_cache=False).logits.float()
        changed = torch.cat([ids[:, :-1], ids[:, :1]], 1)
        if not _same(call(input_ids=changed, use_cache=False).logits[:, :-1].float(), whole[:, :-1]):
            raise ValueError(f"{type(network).__name__} sees the tokens that it should predict: it is no causal model")
        if packed:
            together = call(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 7:].float()
            if not _same(together, call(input_ids=ids[:, 7:], use_cache=False).logits.float()):
                raise ValueError(f"{type(network).__name__} does not keep packed documents apart: {advice}")
    except TypeError as error:
        raise ValueError(f"{type(network).__name__} takes no packed documents ({error}): {advice}") from None
    finally:
        for name, parameter in convolutions.items():
            parameter.copy_(kept[name])
        network.train(training)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Rounding is 1e-6 of the largest logit; the last token changes those of a new BERT by 1e-3.
    return bool((a - b).abs().max() <= 3e-5 * b.abs().max())
