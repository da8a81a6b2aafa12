"""Names of arguments and outputs, which differ between versions of transformers.

transformers 5.24 calls `cache` what 5.23 called `past_key_values`: :data:`CACHE` is the name in the version at hand,
and our own models take both.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from transformers import modeling_outputs
from transformers.cache_utils import Cache
from transformers.utils import TransformersKwargs

logger = logging.getLogger("dynaconv")

TESTED = "5.24"  # the newest minor version of transformers that the tests have passed with
CACHE_NAMES = ("cache", "past_key_values")  # also in the signatures of our models, the first one first
CACHE = next(
    name
    for name in CACHE_NAMES
    if name in {field.name for field in dataclasses.fields(modeling_outputs.BaseModelOutputWithPast)}
)
# What a caller may pass through our models to attention, to the loss and to what collects outputs.
_PASSED_ON = {*TransformersKwargs.__annotations__, "return_dict", "shift_labels"}


@functools.cache
def note_version() -> None:
    """Log one line where the version of transformers is newer than any that was tested."""
    installed = version("transformers")
    if tuple(map(int, installed.split(".")[:2])) > tuple(map(int, TESTED.split("."))):
        logger.info("transformers %s is newer than %s, the last that dynaconv was tested with", installed, TESTED)


def check_arguments(model: object, arguments: Iterable[str]) -> None:
    """Raise TypeError where a model was given an argument that neither it nor transformers knows."""
    if unknown := sorted(set(arguments) - _PASSED_ON):
        raise TypeError(f"{type(model).__name__} has no argument {', '.join(unknown)}")


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that was given under one of two names; raises TypeError where both were."""
    if cache is not None and past_key_values is not None:
        raise TypeError("give either cache or past_key_values, its older name; got both")
    return past_key_values if cache is None else cache


def find_cache(arguments: Mapping[str, Any]) -> Any:
    """What a model or a layer was given as its cache, by whatever name; None: nothing."""
    named = (arguments.get(name) for name in CACHE_NAMES)
    found = next((value for value in named if value is not None), None)
    return next((value for value in arguments.values() if isinstance(value, Cache)), None) if found is None else found


def output(kind: Any, cache: Any, **values: Any) -> Any:
    """A transformers output of a kind that has a cache, with it under both of its names."""
    return kind(**values, **{CACHE: cache})


def _both_names(kind: Any) -> Any:
    """An output class whose cache can be read as `cache` too where transformers has only the older name."""
    if CACHE == "cache":
        return kind
    members = {"__module__": __name__, "cache": property(lambda self: self.past_key_values)}
    return type(kind.__name__, (kind,), members)


BaseModelOutputWithPast = _both_names(modeling_outputs.BaseModelOutputWithPast)
CausalLMOutputWithPast = _both_names(modeling_outputs.CausalLMOutputWithPast)
MoeCausalLMOutputWithPast = _both_names(modeling_outputs.MoeCausalLMOutputWithPast)
MoeModelOutputWithPast = _both_names(modeling_outputs.MoeModelOutputWithPast)
Seq2SeqLMOutput = _both_names(modeling_outputs.Seq2SeqLMOutput)
Seq2SeqModelOutput = _both_names(modeling_outputs.Seq2SeqModelOutput)
