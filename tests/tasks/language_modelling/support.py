"""A small text, and a recipe that trains a tiny language model on it in seconds."""

from pathlib import Path

import yaml

from ...conftest import toy_pairs


def write_text(folder: Path, count: int = 400) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(f"{english}\n" for _, english in toy_pairs(count, seed=3)), encoding="utf-8")
    return path


def write_recipe(folder: Path, **sections: dict) -> Path:
    recipe = {
        "task": "language_modelling",
        "data": {
            "train": str(write_text(folder)),
            "window": 32,
            "valid_size": 20,
            "test_size": 20,
            "near_duplicates": True,
        },
        "tokenizer": {"vocab_size": 300},
        "model": {
            "host": "dynaconv",
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "conv_rank": 4,
                "max_position_embeddings": 64,
            },
        },
        "train": {
            "max_steps": 60,
            "max_tokens": 256,
            "learning_rate": 0.01,
            "warmup_steps": 6,
            "save_steps": 20,
            "eval_steps": 30,
            "log_steps": 10,
        },
    }
    for name, values in sections.items():
        recipe[name] = recipe.get(name, {}) | values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
