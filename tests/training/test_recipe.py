"""Recipes: every mistake is explained, every value survives a round trip."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from dynaconv.cli import _check_content
from dynaconv.tasks import TASKS
from dynaconv.tasks.translation.recipe import Recipe
from dynaconv.training.recipe import differences, load_recipe, save_recipe
from dynaconv.training.sweep import read_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "recipes" / "sweeps").glob("*.yaml"))
RECIPES = sorted(set((Path(__file__).parents[2] / "recipes").glob("*/*.yaml")) - set(SWEEPS))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_project(path, tmp_path):
    kind = import_module(f"dynaconv.tasks.{path.parent.name}.recipe").Recipe
    recipe = load_recipe(path, kind)
    assert recipe.task == path.parent.name
    assert recipe.task in TASKS
    recipe.model.configuration(vocab_size=10**6)
    save_recipe(recipe, tmp_path / "copy.yaml")
    assert load_recipe(tmp_path / "copy.yaml", kind) == recipe


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_of_the_project(path):
    _, cells = read_sweep(path, _check_content)
    assert len({cell.name for cell in cells}) == len(cells) > 2


MISTAKES = {
    "misspelt key": ("train: {lerning_rate: 1}", "unknown key train.lerning_rate: did you mean learning_rate?"),
    "misspelt section": ("trian: {seed: 1}", "unknown key trian: did you mean train?"),
    "unlike any key": ("model: {xyz: 1}", "unknown key model.xyz: there are d_model, encoder_layers"),
    "wrong type": ("train: {max_steps: many}", "train.max_steps: input should be a valid integer"),
    "wrong choice": (
        "model: {mixer: conv}",
        "model.mixer: input should be 'lightweight', 'dynamic' or 'attention'; got 'conv'",
    ),
    "too few": ("train: {average_last: -2}", "train.average_last: input should be greater than or equal to 1; got -2"),
    "negative": ("train: {weight_decay: -1}", "train.weight_decay: input should be greater than or equal to 0; got -1"),
    "absurd": ("train: {max_tokens: 1e30}", "train.max_tokens: "),
    "infinite": ("train: {learning_rate: .inf}", "train.learning_rate: must be a finite number; got inf"),
    "all is dropped": ("train: {label_smoothing: 1}", "train.label_smoothing: input should be less than 1; got 1"),
    "a key twice": ("train: {seed: 1, seed: 2}", "the key seed is given twice"),
    "a section twice": ("train: {seed: 1}\ntrain: {max_steps: 2}", "the key train is given twice"),
    "aliases": ("data: &a {seed: 1}\ntrain: *a", "aliases (*) are not read"),
    "a list": ("[1, 2]", "must hold sections, such as data, model and train; got a list"),
    "not YAML": ("train: [", "is not valid YAML"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, tmp_path):
    content, message = MISTAKES[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_recipe(path, Recipe)
    assert "\n" not in str(caught.value)


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {learning_rate: 5e-4}")
    recipe = load_recipe(path, Recipe)
    assert recipe.train.learning_rate == 5e-4
    assert differences(Recipe(), recipe) == []
    recipe.train.seed = 7
    assert differences(Recipe(), recipe) == ["train.seed: 1 -> 7"]


def test_missing_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe .*absent.yaml: give a YAML file"):
        load_recipe(tmp_path / "absent.yaml", Recipe)
