"""Recipes: everything that decides what a training run does, as typed dataclasses read from YAML."""

import dataclasses
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedConfig

from ..data.store import write_whole
from .bounds import Above0, Count, NotNegative, Positive, Seed, Share, explain, infinite

R = TypeVar("R")


@dataclasses.dataclass
class TrainConfig:
    """Optimisation: AdamW, loss averaged over tokens."""

    max_steps: Positive = 50000
    """Updates."""
    max_tokens: Positive = 4000
    """Batch size of one device: longest sequence x sequences is at most this."""
    accumulation: Positive = 1
    """Batches per update."""
    learning_rate: Above0 = 5e-4
    """At the end of the warmup."""
    schedule: Literal["inverse_sqrt", "cosine", "wsd"] = "inverse_sqrt"
    """After a linear warmup: lr * sqrt(warmup / step), or half a cosine down to min_learning_rate, or (warmup, stable,
    decay) the same rate until it falls to min_learning_rate in the last decay_steps."""
    warmup_steps: Count = 4000
    min_learning_rate: NotNegative = 0.0
    """At the end of the schedules cosine and wsd."""
    decay_steps: Count = 0
    """Of the schedule wsd."""
    adam_beta2: Share = 0.98
    """Of the second moment; that of the first is 0.9."""
    weight_decay: NotNegative = 0.0
    """Decoupled, not on norms, biases and short convolutions."""
    clip_norm: NotNegative = 0.0
    """Of the gradient; 0: no clipping."""
    average_last: Positive = 10
    """The final model is the mean of this many last checkpoints."""
    save_steps: Positive = 1000
    """Updates between checkpoints."""
    eval_steps: Positive = 1000
    """Updates between evaluations on the validation set."""
    log_steps: Positive = 100
    patience: Count = 0
    """Training ends behind so many evaluations without a lower validation loss; 0: it does not."""
    best: bool = False
    """The final model is the checkpoint with the lowest validation loss, not the mean of the last ones. Each checkpoint
    must have an evaluation: save_steps is a multiple of eval_steps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, else fp32."""
    seed: Seed = 1

    @property
    def kept(self) -> int:
        """Checkpoints that are kept: one more than the last, should that be damaged."""
        return max(2, self.average_last)


def model_section(config: type[PreTrainedConfig], leave_out: Collection[str]) -> Any:
    """What a recipe may say about a model: the fields of its configuration, None where the recipe does not say it.

    Args:
        config: the configuration class; its docstring describes the fields.
        leave_out: fields that something else decides; those that all configurations have are left out anyway.

    Returns:
        A dataclass.
    """
    types = {
        name: kind for name, kind in config.__annotations__.items() if name not in PreTrainedConfig.__annotations__
    }
    fields = [(name, kind | None, None) for name, kind in types.items() if name not in leave_out]
    return dataclasses.make_dataclass(f"{config.__name__}Section", fields, namespace={"__doc__": config.__doc__})


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the sections of a recipe from a YAML file.

    Raises:
        ValueError: not YAML, or not a mapping.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {path}: give a YAML file, such as recipes/translation/demo.yaml")
    try:
        with path.open(encoding="utf-8") as file:  # whose name is in errors
            content = yaml.load(file, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise ValueError(f"{path} must hold sections, such as data, model and train; got a {type(content).__name__}")
    return content or {}


def check_recipe(content: dict[str, Any], kind: type[R], name: str) -> R:
    """Sections as a recipe.

    Args:
        content: {section: {key: value}}.
        kind: the dataclass of the task's recipes; its sections are dataclasses.
        name: of the recipe, for errors.

    Raises:
        ValueError: unknown keys, or values of the wrong type or out of bounds, each named with what there is.
    """
    mistakes = list(_unknown_keys(content, kind))
    try:
        recipe: Any = TypeAdapter(kind).validate_python(content)
        mistakes += infinite(_flat(dataclasses.asdict(recipe)))
        if not mistakes:
            return recipe
    except ValidationError as error:
        mistakes += map(explain, error.errors())
    raise ValueError(f"{name}: {'; '.join(mistakes)}")


def task_of(model: Path | None) -> str | None:
    """The task that a model was trained for; None where no recipe stands beside it."""
    path = model and recipe_file(model)
    return task_in(read_recipe(path)) if path else None


def task_in(content: dict[str, Any]) -> str:
    """The task of a recipe; those from before there were others do not say it."""
    return content.get("task", "translation")


def recipe_file(model: Path) -> Path | None:
    """The recipe that a model was trained with: in its run folder, which may be the parent of a checkpoint."""
    return next((path for folder in (model, model.parent) if (path := folder / "recipe.yaml").is_file()), None)


def load_recipe(path: str | Path, kind: type[R]) -> R:
    """Read a recipe; see :func:`read_recipe` and :func:`check_recipe`."""
    return check_recipe(read_recipe(path), kind, str(path))


def save_recipe(recipe: Any, path: Path) -> None:
    """Write every value of a recipe as YAML, in one step."""
    write_whole(path, yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True))


def differences(old: Any, new: Any) -> list[str]:
    """What differs between two recipes of a task, as "section.key: old -> new"."""
    a, b = (_flat(dataclasses.asdict(recipe)) for recipe in (old, new))
    return [f"{name}: {a[name]} -> {b[name]}" for name in a if a[name] != b[name]]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-4 as a string, where a recipe means the number, and takes the last of a key given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases: a few lines of them can stand for more than fits in memory."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*) are not read: write the value again {self.peek_event().start_mark}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse keys that are given twice."""
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for number, (key, _) in enumerate(node.value if keys else ()):
            if key.value in keys[:number]:
                raise yaml.YAMLError(f"the key {key.value} is given twice, the second time {key.start_mark}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _unknown_keys(content: dict[str, Any], kind: Any, prefix: str = "") -> Iterator[str]:
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    for key, value in content.items():
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            yield f"unknown key {prefix}{key}: {hint}"
            continue
        listed = get_origin(known[key]) is list and isinstance(value, list)
        of = get_args(known[key])[0] if listed else known[key]
        for number, part in enumerate(value if listed else [value]):
            if dataclasses.is_dataclass(of) and isinstance(part, dict):
                yield from _unknown_keys(part, of, f"{prefix}{key}.{number}." if listed else f"{prefix}{key}.")
