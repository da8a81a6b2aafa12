"""The network of a recipe, and whether it keeps packed documents apart."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ... import models as _register  # noqa: F401 (makes the Auto classes know our models)
from ...grafting.graft import graft
from ...grafting.loading import from_pretrained
from ...training.checkpoints import loading
from .recipe import ModelConfig


def build(model: ModelConfig, config: Any) -> PreTrainedModel:
    """The network, with new weights, or those of the folder that it goes on from.

    Raises:
        ValueError: no causal language model, damaged weights, or convolutions that do not fit.
    """
    if model.folder is not None:
        folder = Path(model.folder)
        load: Any = from_pretrained if getattr(config, "dynaconv", None) else AutoModelForCausalLM.from_pretrained
        with loading(folder):
            network = load(folder, config=config, dtype=torch.float32, trust_remote_code=False)
    else:
        if type(config) not in AutoModelForCausalLM._model_mapping:
            raise ValueError(f"model.host: {model.host} has no causal language model")
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if model.graft.placement is not None:
        options: dict[str, Any] = dataclasses.asdict(model.graft)
        graft(network, **options)
    return network


@torch.no_grad()
def check_packing(network: PreTrainedModel) -> None:
    """Refuse a network in which packed documents see each other.

    Raises:
        ValueError: two short documents in one row have other logits than each in a row of its own.
    """
    advice = "set data.rows to documents, or choose another model"
    training = network.training
    ids = torch.arange(3, 15, device=network.device)[None] % network.config.get_text_config().vocab_size
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None].to(network.device)
    call: Any = network.eval()
    try:
        together = call(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 7:].float()
        alone = call(input_ids=ids[:, 7:], use_cache=False).logits.float()
    except TypeError as error:
        raise ValueError(f"{type(network).__name__} takes no packed documents ({error}): {advice}") from None
    finally:
        network.train(training)
    if not torch.allclose(together, alone, atol=1e-3 * float(alone.abs().max()), rtol=1e-3):
        raise ValueError(f"{type(network).__name__} does not keep packed documents apart: {advice}")
