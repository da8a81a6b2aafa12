"""Models that were saved with short convolutions."""

import inspect
import os
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from .graft import graft

_HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def from_pretrained(path: str | os.PathLike[str], **keywords: Any) -> Any:
    """Load a model that was saved with short convolutions by `save_pretrained`.

    Args:
        path: folder, or name on the Hugging Face hub.
        **keywords: as of `transformers.AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, `revision`, ...

    Returns:
        The model; with `output_loading_info` the pair of it and what transformers tells about the loading.

    Raises:
        ValueError: the checkpoint has no short convolutions, other ones than :func:`graft` makes, or lacks some of
            their parameters.
    """
    hub = {name: keywords.pop(name) for name in _HUB_KEYWORDS if name in keywords}
    own = {name: keywords.pop(name) for name in ("dtype", "torch_dtype", "output_loading_info") if name in keywords}
    config: Any = keywords.pop("config", None)
    load: Any = AutoConfig.from_pretrained
    if config is None:
        config, keywords = load(path, return_unused_kwargs=True, **hub, **keywords)
    elif isinstance(config, (str, os.PathLike)):
        config = load(config, **hub)
    options = getattr(config, "dynaconv", None)
    if options is None:
        raise ValueError(
            f"{path} was not saved with convolutions from dynaconv.graft: load it with "
            "transformers.AutoModelForCausalLM, after import dynaconv.models if it is one of these"
        )
    names = set(inspect.signature(graft).parameters) - {"model"}
    if not isinstance(options, dict) or not options.keys() <= names:
        raise ValueError(f"dynaconv in the config.json of {path} must have {', '.join(sorted(names))}; got {options!r}")
    original: Any = getattr(transformers, (config.architectures or ["?"])[0], None)
    if not isinstance(original, type) or not issubclass(original, PreTrainedModel):
        raise ValueError(f"{path} must name a model of transformers in architectures; got {config.architectures}")

    def build(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        original.__init__(self, *args, **kwargs)
        self.__class__ = original
        graft(self, **options)

    identity = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    builder: Any = type(original.__name__, (original,), {"__init__": build, **identity})
    wants_info = own.pop("output_loading_info", False)
    model, info = builder.from_pretrained(path, config=config, output_loading_info=True, **hub, **own, **keywords)
    missing = sorted(key for key in info["missing_keys"] if ".short_convs." in key)
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} parameters of short convolutions that its config.json tells of: "
            f"{', '.join(missing[:3])}, ..."
        )
    return (model, info) if wants_info else model
