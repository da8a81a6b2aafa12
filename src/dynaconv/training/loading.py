"""Trained models, of whatever kind is in a folder."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from .. import models as _register  # noqa: F401 (makes the Auto classes know our models)
from ..data.tokenizer import load_tokenizers
from ..grafting.loading import from_pretrained
from .checkpoints import loading


def read_config(path: Path) -> Any:
    """The configuration of the model in a folder.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: a damaged file.
    """
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"no model in {path} (config.json)")
    with loading(path):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def reader(config: Any) -> Any:
    """The `from_pretrained` of the model that a configuration is of: causal or encoder-decoder, grafted or not."""
    if getattr(config, "dynaconv", None) is not None:
        return from_pretrained
    return (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_pretrained


def load_network(read: Any, path: Path, **options: Any) -> Any:
    """A network that has the weights in a folder, all of them, and of ours and grafted ones no others.

    Args:
        read: `from_pretrained` of its class; see :func:`reader`.
        path: the folder.
        **options: of `read`.

    Raises:
        ValueError: weights that are missing, not used, infinite or NaN.
        RuntimeError: weights of other sizes than config.json says.
    """
    network, info = read(path, trust_remote_code=False, output_loading_info=True, **options)
    faults = {"missing_keys": "are missing"}
    if network.config.model_type.startswith("dynaconv") or getattr(network.config, "dynaconv", None):
        faults["unexpected_keys"] = "are not in it"  # of others, what older versions have saved
    for kind, fault in faults.items():
        if keys := sorted(map(str, info.get(kind, ()))):
            raise ValueError(f"by config.json, {len(keys)} weights {fault}, such as {keys[0]}")
    broken = [name for name, parameter in network.named_parameters() if not parameter.isfinite().all()]
    if broken:
        raise ValueError(f"{len(broken)} weights are infinite or NaN, such as {broken[0]}: its training has diverged")
    return network


def load_model(path: Path, device: str | None) -> tuple[Any, Any]:
    """A causal language model or an encoder-decoder, grafted or not, to use, and the tokenizer of what it reads.

    Args:
        path: its folder.
        device: None: a GPU if there is one.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: a damaged file.
    """
    read = reader(read_config(path))
    with loading(path) as usual:
        model, tokenizers = load_network(read, path), load_tokenizers(path, ("source", "target"))
    return model.eval().to(device or usual), tokenizers["source"]


def first_token(config: Any) -> int:
    """The token that begins a text and is not predicted: that which says so, or else that which ends one.

    Raises:
        ValueError: the model has neither.
    """
    text = config.get_text_config()
    begin: Any = getattr(text, "bos_token_id", None)
    end: Any = getattr(text, "eos_token_id", None)
    end = end[0] if isinstance(end, list) else end
    if begin is None and end is None:
        raise ValueError("the config.json of the model has no bos_token_id and no eos_token_id: add it")
    return end if begin is None else begin
