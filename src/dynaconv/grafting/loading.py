"""Models that were saved with short convolutions, and what keeps others from loading them without."""

import inspect
import os
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .auto import GraftedConfig, architectures_of, builder, mark_config
from .graft import graft

_HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class SavedGraft(PreTrainedConfig):
    """Reads the config.json of a model with short convolutions, as that of its host; see `GraftedConfig`."""

    model_type = GraftedConfig.saved_type

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of the host, with which the Auto classes make a model with convolutions.

        Raises:
            ValueError: no such host, or other options than :func:`~dynaconv.grafting.graft` has.
        """
        host = config_dict.get("host")
        known = transformers.CONFIG_MAPPING
        if not isinstance(host, dict) or host.get("type") not in known or not isinstance(host.get("config"), dict):
            raise ValueError(f"config.json must have the host of the short convolutions; got {host!r:.100}")
        result = known[host["type"]].from_dict({**host["config"], "dynaconv": config_dict.get("dynaconv")}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        _check_options(config)
        mark_config(config, graft)
        return result


def _check_options(config: Any) -> None:
    names = set(inspect.signature(graft).parameters) - {"model"}
    if not isinstance(config.dynaconv, dict) or not config.dynaconv.keys() <= names:
        raise ValueError(f"dynaconv in config.json must have {', '.join(sorted(names))}; got {config.dynaconv!r}")


def from_pretrained(path: str | os.PathLike[str], **keywords: Any) -> Any:
    """Load a model that was saved with short convolutions by `save_pretrained`.

    Args:
        path: folder, or name on the Hugging Face hub.
        **keywords: as of `transformers.AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, `revision`, ...

    Returns:
        The model; with `output_loading_info` the pair of it and what transformers tells about the loading.

    Raises:
        ValueError: the checkpoint has no short convolutions, other ones than :func:`graft` makes, or lacks some of
            their parameters; or something has taken the place of the linear layers that they follow.
    """
    hub = {name: keywords.pop(name) for name in _HUB_KEYWORDS if name in keywords}
    own = {name: keywords.pop(name) for name in ("dtype", "torch_dtype", "output_loading_info") if name in keywords}
    config: Any = keywords.pop("config", None)
    load: Any = AutoConfig.from_pretrained
    if config is None:
        config, keywords = load(path, return_unused_kwargs=True, **hub, **keywords)
    elif isinstance(config, (str, os.PathLike)):
        config = load(config, **hub)
    if getattr(config, "dynaconv", None) is None:
        raise ValueError(
            f"{path} was not saved with convolutions from dynaconv.graft: load it with "
            "transformers.AutoModelForCausalLM, after import dynaconv.models if it is one of these"
        )
    _check_options(config)
    mark_config(config, graft)
    architectures = architectures_of(config)
    original: Any = getattr(transformers, (architectures or ["?"])[0], None)
    if not isinstance(original, type) or not issubclass(original, PreTrainedModel):
        raise ValueError(f"{path} must name a model of transformers in architectures; got {architectures}")
    return builder(original, graft).from_pretrained(path, config=config, **hub, **own, **keywords)


AutoConfig.register(SavedGraft.model_type, SavedGraft)
