"""Configurations of models with short convolutions, and how transformers' Auto classes come to know these models."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from .modules import Grafted, GraftedLayer, change_class, is_convolved, original_class

_PREFIX = "Grafted"


class GraftedConfig(Grafted):
    """The configuration of a model with short convolutions, which is the host's in all but how it is saved.

    In a config.json as the host's, a loader that does not know of the convolutions would leave them out and answer.
    So it has a type of its own, which the Auto classes refuse before `dynaconv.grafting` is imported, and what the
    host's own classes read of it is a message where they expect numbers or parts.
    """

    saved_type = "dynaconv_graft"
    message = (
        "this model has short convolutions: import dynaconv.grafting, then load it with dynaconv.from_pretrained or an "
        "Auto class"
    )

    auto_map: ClassVar[dict[str, str]] = {}
    """No code of its own; TRL asks, where transformers has no class of the name in `architectures`."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As of the host, from what :meth:`to_json_file` has written too."""
        if config_dict.get("model_type") == cls.saved_type:
            return CONFIG_MAPPING[cls.saved_type].from_dict(config_dict, **kwargs)
        return cast(Any, super()).from_dict(config_dict, **kwargs)

    def to_json_file(self, json_file_path: Any, use_diff: bool = True) -> None:
        """Write the host's configuration inside one of `saved_type`."""
        config = cast(PreTrainedConfig, self)
        host = json.loads(config.to_json_string(use_diff))
        content = {
            "model_type": self.saved_type,
            "architectures": host.get("architectures"),
            "dynaconv": host.pop("dynaconv"),
            "host": {"type": config.model_type, "config": host},
            "transformers_version": host.get("transformers_version"),
            **dict.fromkeys(("vocab_size", *config.sub_configs), self.message),
        }
        Path(json_file_path).write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")


def architectures_of(config: Any) -> list[str]:
    """The classes of transformers that a configuration names."""
    return [name.removeprefix(_PREFIX) for name in config.architectures or ()]


def mark_config(config: Any, graft: Callable[..., Any]) -> None:
    """Let the Auto classes make models with the convolutions that a configuration of a host names in `dynaconv`.

    Args:
        config: of the host.
        graft: what puts them into a model of it.
    """
    # Trainers take the class that it names where transformers has one, and an Auto class where not.
    config.architectures = [f"{_PREFIX}{name}" for name in architectures_of(config)] or None
    if isinstance(config, GraftedConfig):
        return
    host = type(config)
    change_class(config, GraftedConfig)
    for auto in vars(modeling_auto).values():
        models: Any = getattr(auto, "_model_mapping", None)
        originals = None if models is None else models.get(host, None)
        if isinstance(originals, type):
            models.register(type(config), builder(originals, graft), exist_ok=True)
        elif originals is not None:  # of which the configuration names one
            models.register(type(config), tuple(builder(each, graft) for each in originals), exist_ok=True)


class _Builder:
    """Mixed into the class of a model, makes one with the convolutions that its configuration names."""

    original: type
    graft: Callable[..., Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        options = getattr(config, "dynaconv", None)
        if options is None:
            raise ValueError(
                f"the text part of {self.original.__name__} alone does not know its short convolutions: load the whole "
                "model with dynaconv.from_pretrained"
            )
        graft, marked = self.graft, type(config)
        config.__class__ = original_class(config)  # some models make a part of themselves by an Auto class
        try:
            cast(Any, self.original).__init__(self, config, *args, **kwargs)
        finally:
            config.__class__ = marked
        self.__class__ = self.original
        graft(cast(PreTrainedModel, self), **options)

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, output_loading_info: bool = False, **keywords: Any) -> Any:
        """As of the model.

        Raises:
            ValueError: parameters of convolutions are missing, linear layers before them were replaced, or tensor
                parallelism.
        """
        asked = {**vars(keywords.get("distributed_config") or object), **keywords}
        if asked.get("tp_plan") or asked.get("tp_size"):
            raise ValueError("short convolutions of a graft are not sharded: load it without tensor parallelism")
        parent: Any = super()
        model, info = parent.from_pretrained(path, *args, output_loading_info=True, **keywords)
        missing = sorted(key for key in info["missing_keys"] if "short_convs." in key)
        if missing:
            raise ValueError(
                f"{path} lacks {len(missing)} parameters of short convolutions that its config.json tells of: "
                f"{', '.join(missing[:3])}, ..."
            )
        for layer in model.modules():
            for site in layer.graft_sites if isinstance(layer, GraftedLayer) else ():
                if not is_convolved(linear := layer.get_submodule(site)):
                    raise ValueError(
                        f"a {type(linear).__name__} has taken the place of {site}, whose output has a short "
                        "convolution: quantize other layers only, or convolve others"
                    )
        return (model, info) if output_loading_info else model


@functools.cache
def builder(original: Any, graft: Callable[..., Any]) -> Any:
    """The class that makes a model of this class, into which `graft` puts convolutions."""
    identity = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    members = {"original": original, "graft": staticmethod(graft)}
    return type(original.__name__, (_Builder, original), identity | members)
