"""Recipes: every mistake is explained, every value survives a round trip."""

import re
from pathlib import Path

import pytest

from dynaconv.models import LightConvConfig
from dynaconv.tasks.translation.recipe import Recipe, differences, load_recipe, save_recipe

RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_project(path, tmp_path):
    recipe = load_recipe(path)
    LightConvConfig.from_preset(recipe.model.preset, **{"vocab_size": 100, **recipe.model.overrides()})
    save_recipe(recipe, tmp_path / "copy.yaml")
    assert load_recipe(tmp_path / "copy.yaml") == recipe


MISTAKES = {
    "misspelt key": ("train: {lerning_rate: 1}", "unknown key train.lerning_rate: did you mean learning_rate?"),
    "misspelt section": ("trian: {seed: 1}", "unknown key trian: did you mean train?"),
    "unlike any key": ("model: {xyz: 1}", "unknown key model.xyz: there are preset, mixer"),
    "wrong type": ("train: {max_steps: many}", "train.max_steps: input should be a valid integer"),
    "wrong choice": ("model: {mixer: conv}", "model.mixer: input should be 'lightweight', 'dynamic' or 'attention'; got 'conv'"),
    "too few": ("train: {average_last: -2}", "train.average_last: input should be greater than or equal to 1; got -2"),
    "a list": ("[1, 2]", "must hold sections (data, tokenizer, model, train); got a list"),
    "not YAML": ("train: [", "is not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, tmp_path):
    content, message = MISTAKES[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {learning_rate: 5e-4}")
    recipe = load_recipe(path)
    assert recipe.train.learning_rate == 5e-4
    assert differences(Recipe(), recipe) == []
    recipe.train.seed = 7
    assert differences(Recipe(), recipe) == ["train.seed: 1 -> 7"]


def test_missing_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe .*absent.yaml: give a YAML file"):
        load_recipe(tmp_path / "absent.yaml")
